"""Any text -> fixed token sequences with a fingerprint: one set for the block stage, one for the width stages, one held out for the report."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import GemmaTokenizer, PreTrainedTokenizerBase

from pruning.errors import InputError

Source = Literal["pydoc", "text", "alpaca", "wikitext2", "c4", "ptb", "tokens"]
SOURCES: tuple[str, ...] = get_args(Source)
SetName = Literal["block", "width", "heldout"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenSet:
    """Equally long token sequences without padding: `input_ids` is int64 [sequences, length]."""

    input_ids: Tokens

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape and tokens, 32 hexadecimal digits."""
        data = np.ascontiguousarray(self.input_ids, dtype="<i8")
        return hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()[:32]

    @property
    def num_sequences(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def sequence_length(self) -> int:
        return int(self.input_ids.shape[1])

    def batches(self, batch_size: int) -> list[Tokens]:
        """Consecutive batches; the last one may be smaller."""
        return [self.input_ids[start : start + batch_size] for start in range(0, self.num_sequences, batch_size)]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The three sets of a search. `heldout` shares no text with the other two and is None when the source has none to spare."""

    block: TokenSet
    width: TokenSet
    heldout: TokenSet | None

    def sets(self) -> dict[SetName, TokenSet]:
        found: dict[SetName, TokenSet] = {"block": self.block, "width": self.width}
        return found if self.heldout is None else found | {"heldout": self.heldout}

    def save(self, path: Path) -> None:
        save_file({name: tokens.input_ids for name, tokens in self.sets().items()}, path)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a calibration set.

    For running text (`pydoc`, `wikitext2`, a text file) and `tokens`, a sample is one sequence. For rows (`alpaca`, `c4`, `ptb`, JSONL) it
    is one row: the drawn rows are joined with two newlines, tokenized as one text and cut into sequences (METHOD: "Calibration sets
    as published").

    Args:
        path: the file of `text` and `tokens`; for the named datasets a local copy to use instead of the hub.
        column: field of each row that holds the text; None is the dataset's own.
    """

    source: Source
    num_block_samples: int
    num_width_samples: int
    num_heldout_samples: int
    sequence_length: int
    seed: int = 42
    path: str | None = None
    column: str | None = None


def make_calibration(recipe: Recipe, tokenizer: Callable[[], PreTrainedTokenizerBase], *, vocab_size: int) -> Calibration:
    """Builds the three sets.

    Args:
        tokenizer: called only by sources that are text.

    Raises:
        InputError: missing or unreadable data, too little of it, or token ids outside the vocabulary.
    """
    if recipe.source == "tokens":
        calibration = _from_tokens(recipe)
    else:
        text = _running_text(recipe)
        calibration = _from_rows(recipe, tokenizer()) if text is None else _from_text(recipe, tokenizer(), *text)
    for name, tokens in calibration.sets().items():
        low, high = int(tokens.input_ids.min()), int(tokens.input_ids.max())
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"calibration: the {name} set has token id {low if low < 0 else high}, outside the model's vocabulary 0..{vocab_size - 1}. "
                "Was it made with another model's tokenizer?"
            )
    return calibration


def _from_tokens(recipe: Recipe) -> Calibration:
    path = _required_path(recipe, "a safetensors file with input_ids [sequences, length]")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"calibration.path: {path} is not a readable safetensors file: {error}") from error
    input_ids = tensors.get("input_ids")
    if input_ids is None or input_ids.ndim != 2 or not np.issubdtype(input_ids.dtype, np.integer):
        raise InputError(f"calibration.path: {path} must hold integer input_ids [sequences, length]; it holds {_describe(tensors)}")
    if input_ids.shape[1] < recipe.sequence_length:
        raise InputError(f"calibration.sequence_length: {recipe.sequence_length}, but the sequences in {path} have {input_ids.shape[1]} tokens")
    ids = input_ids[:, : recipe.sequence_length].astype(np.int64)
    needed = max(recipe.num_block_samples, recipe.num_width_samples)
    if len(ids) < needed:
        raise InputError(f"calibration: {needed} sequences asked for, {path} has {len(ids)}")
    spare = ids[needed : needed + recipe.num_heldout_samples]
    return Calibration(TokenSet(ids[: recipe.num_block_samples]), TokenSet(ids[: recipe.num_width_samples]), TokenSet(spare) if len(spare) else None)


def _from_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, text: str, heldout_text: str) -> Calibration:
    """Sequences drawn from running text: first those of the width stages, then those of the block stage, from what is left."""
    sequences = text_windows(tokenizer, text, recipe.sequence_length)
    width, block = recipe.num_width_samples, recipe.num_block_samples
    if len(sequences) < width + block:
        raise InputError(
            f"calibration: {width} + {block} sequences of {recipe.sequence_length} tokens asked for (num_width_samples + num_block_samples), the "
            f"text gives {len(sequences)}. Ask for fewer or shorter sequences, or give more text"
        )
    drawn = random.Random(recipe.seed).sample(range(len(sequences)), width + block)
    heldout = text_windows(tokenizer, heldout_text, recipe.sequence_length)[: recipe.num_heldout_samples]
    return Calibration(TokenSet(sequences[drawn[width:]]), TokenSet(sequences[drawn[:width]]), TokenSet(heldout) if len(heldout) else None)


def _from_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    """Rows drawn as published: seed once, first the rows of the width stages, then, from all rows again, those of the block stage."""
    rows, heldout_rows = _rows(recipe)
    generator = random.Random(recipe.seed)
    sets = []
    for name, count in (("num_width_samples", recipe.num_width_samples), ("num_block_samples", recipe.num_block_samples)):
        if count > len(rows):
            raise InputError(f"calibration.{name}: {count}, but {recipe.source} has {len(rows)} rows to draw from")
        chosen = [rows[index] for index in generator.sample(range(len(rows)), count)]
        sequences = text_windows(tokenizer, "\n\n".join(chosen), recipe.sequence_length)
        if not len(sequences):
            raise InputError(
                f"calibration.{name}: {count} rows are shorter than one sequence of {recipe.sequence_length} tokens. "
                "Ask for more rows or a smaller calibration.sequence_length"
            )
        sets.append(TokenSet(sequences))
    heldout = text_windows(tokenizer, "\n\n".join(heldout_rows), recipe.sequence_length)[: recipe.num_heldout_samples]
    return Calibration(block=sets[1], width=sets[0], heldout=TokenSet(heldout) if len(heldout) else None)


def text_windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Tokens:
    """A text tokenized as a whole and cut into windows; the tail is dropped (METHOD: "Calibration sets as published").

    Gemma's each begin with BOS: it has never seen a text without, and its perplexity on one is several times that on the same text behind BOS.

    Returns:
        int64 [windows, length]; no windows if the text is too short.
    """
    if isinstance(tokenizer, GemmaTokenizer):
        return np.insert(_cut(_tokenize(tokenizer, text, add_special_tokens=False), length - 1), 0, tokenizer.bos_token_id, axis=1)
    return _cut(_tokenize(tokenizer, text), length)


def measured_text(name: str, *, option: str, folder: Path | None = None) -> str:
    """The text that a perplexity is measured on.

    Args:
        name: `wikitext2`, the test split of WikiText-2; or a file: .jsonl with a column `text`, whose rows are joined with two newlines, .raw as
            WikiText is distributed, or any other plain text.
        option: that names it, for messages.
        folder: where a local copy of WikiText-2 may lie, as wikitext2.test.raw.

    Raises:
        InputError: it is not there or not text.
    """
    if name == "wikitext2":
        copy = folder / "wikitext2.test.raw" if folder else None
        if copy is not None and copy.is_file():
            return wikitext_text(_read_text(str(copy), option))
        return "\n\n".join(_hub_dataset("Salesforce/wikitext", option=option, name="wikitext-2-raw-v1", split="test")["text"])
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"{option}: {name} is neither wikitext2 nor a file; give a text file (.txt, .raw) or a .jsonl with a column text")
    if path.suffix == ".jsonl":
        return "\n\n".join(_read_jsonl(path, "text", option))
    text = _read_text(name, option)
    return wikitext_text(text) if path.suffix == ".raw" else text


def wikitext_text(raw: str) -> str:
    """The text of a WikiText raw file as the papers tokenize it: the hub's rows (blank ones empty, others with their newline) joined with two newlines."""
    return "\n\n".join(line if line.strip() else "" for line in raw.splitlines(keepends=True))


def _running_text(recipe: Recipe) -> tuple[str, str] | None:
    """(text to calibrate on, text held out), or None when the source is rows."""
    if recipe.source == "pydoc":
        return _split_text("\n\n".join(text for _, text in sorted(_pydoc_topics().items())))
    if recipe.source == "wikitext2":
        if recipe.path is not None:
            return _split_text(wikitext_text(_read_text(recipe.path)))
        train, test = (_hub_dataset("Salesforce/wikitext", name="wikitext-2-raw-v1", split=split)["text"] for split in ("train", "test"))
        return "\n\n".join(train), "\n\n".join(test)
    if recipe.source == "text":
        path = _required_path(recipe, "a text file, or a .jsonl file with one row a line")
        return None if path.suffix == ".jsonl" else _split_text(_read_text(str(path)))
    return None


def _rows(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(rows to draw from, rows held out)."""
    if recipe.source == "alpaca":
        return _alpaca(recipe)
    if recipe.path is not None:
        rows = _read_jsonl(Path(recipe.path).expanduser(), recipe.column or "text")
        cut = len(rows) - max(1, len(rows) // 10)
        return rows[:cut], rows[cut:]
    if recipe.source == "c4":
        files = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
        pair = [_hub_rows("allenai/c4", data_files=files, split=split, column=recipe.column or "text") for split in files]
    else:
        # The dataset's main branch is a loading script, which current versions of `datasets` do not run; the hub's conversion holds the same rows.
        pair = [
            _hub_rows("ptb-text-only/ptb_text_only", revision="refs/convert/parquet", split=split, column=recipe.column or "sentence")
            for split in ("train", "test")
        ]
    return pair[0], pair[1]


def _alpaca(recipe: Recipe) -> tuple[list[str], list[str]]:
    """The published split: a fifth of the rows is the test part, its first half is drawn from, its second half is held out here."""
    import datasets

    column = recipe.column or "text"
    if recipe.path is None:
        rows = _hub_dataset("tatsu-lab/alpaca", split="train")
    else:
        rows = datasets.Dataset.from_dict({column: _read_jsonl(Path(recipe.path).expanduser(), column)})
    test = rows.train_test_split(test_size=0.2, seed=42)["test"]
    halves = test.train_test_split(test_size=0.5, seed=42)
    return list(halves["train"][column]), list(halves["test"][column])


def _hub_rows(path: str, *, column: str, **options: Any) -> list[str]:
    rows = _hub_dataset(path, **options)
    if column not in rows.column_names:
        raise InputError(f"calibration.column: {path} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return [row for row in rows[column] if row]


def _hub_dataset(path: str, *, option: str = "calibration", **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        local = "calibration.path=FILE, or use calibration=pydoc, which needs no network" if option == "calibration" else f"{option}=[FILE]"
        raise InputError(
            f"{option}: dataset {path!r} is neither in the local cache nor to be had from the hub ({reason}). Give a local copy with {local}"
        ) from error


def _pydoc_topics() -> dict[str, str]:
    from pydoc_data import topics

    found: dict[str, str] = topics.topics
    return found


def _split_text(text: str) -> tuple[str, str]:
    """The first nine tenths, and the rest, parted at a blank line."""
    boundary = text.find("\n\n", len(text) * 9 // 10)
    return (text, "") if boundary < 0 else (text[:boundary], text[boundary + 2 :])


def _read_text(path: str, option: str = "calibration.path") -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot read {path} as UTF-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"{option}: {path} is empty")
    return text


def _read_jsonl(path: Path, column: str, option: str | None = None) -> list[str]:
    rows = []
    for number, line in enumerate(_read_text(str(path), option or "calibration.path").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(row[column])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            fields = ", ".join(row) if isinstance(error, KeyError) else "not JSON"
            raise InputError(f"{option or 'calibration.column'}: line {number} of {path} has no field {column!r} (it has: {fields})") from error
        if not isinstance(rows[-1], str):
            raise InputError(f"{option or 'calibration.column'}: field {column!r} of line {number} in {path} is not text")
    return [row for row in rows if row]


def _required_path(recipe: Recipe, what: str) -> Path:
    if recipe.path is None:
        raise InputError(f"calibration.path: missing; calibration={recipe.source} needs {what}")
    path = Path(recipe.path).expanduser()
    if not path.is_file():
        raise InputError(f"calibration.path: no file {recipe.path}; calibration={recipe.source} needs {what}")
    return path


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"] if text else []
    return ids


def _cut(ids: Sequence[int], length: int) -> Tokens:
    """Consecutive sequences; the tail is dropped."""
    count = len(ids) // length
    return np.asarray(ids[: count * length], dtype=np.int64).reshape(count, length)


def _describe(tensors: dict[str, npt.NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()) or "nothing"
