from __future__ import annotations

import json
import logging
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from safetensors.numpy import save_file
from tokenizers.processors import TemplateProcessing
from transformers import GemmaTokenizer, PreTrainedTokenizerFast

from pruning.calibration.sources import wikitext_text
from pruning.calibration.spec import CalibrationSpec
from pruning.calibration.token_sets import TokenSet
from pruning.calibration.windows import text_windows
from pruning.errors import InputError
from tests.pruning.calibration.conftest import make, write_text

SPEC = CalibrationSpec(
    "text",
    num_block_samples=5,
    num_width_samples=3,
    num_heldout_samples=2,
    sequence_length=16,
    seed=42,
)


def test_pydoc_is_always_there(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make(replace(SPEC, source="pydoc", sequence_length=100), tokenizer)
    assert made.block.input_ids.shape == (5, 100)
    assert made.width.input_ids.shape == (3, 100)
    assert made.heldout is not None
    assert made.heldout.input_ids.shape == (2, 100)


def test_sets_do_not_overlap(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = make(replace(SPEC, path=str(write_text(tmp_path / "a.txt"))), tokenizer)
    rows = [tuple(row) for tokens in made.sets().values() for row in tokens.input_ids]
    assert len(set(rows)) == len(rows) == 10


def test_heldout_text_is_the_part_that_is_not_calibrated_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nine tenths `a`, one tenth `b`: no set has both."""
    (tmp_path / "parts.txt").write_text("\n\n".join(["a" * 80] * 18 + ["b" * 80] * 2))
    made = make(replace(SPEC, path=str(tmp_path / "parts.txt")), tokenizer)
    assert made.heldout is not None
    drawn = {int(token) for part in (made.block, made.width) for token in part.input_ids.flat}
    held = {int(token) for token in made.heldout.input_ids.flat}
    a, b = ord("a") - 31, ord("b") - 31
    assert (a in drawn, b in drawn, a in held, b in held) == (True, False, False, True)


@pytest.mark.parametrize("separator", ["\n", " \n \n", " ", "-"])
def test_text_without_blank_lines_is_held_out_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, separator: str
) -> None:
    """As WikiText's raw files, whose empty lines hold a space."""
    (tmp_path / "parts.txt").write_text(separator.join(["a" * 79] * 18 + ["b" * 79] * 2))
    made = make(replace(SPEC, path=str(tmp_path / "parts.txt")), tokenizer)
    assert made.heldout is not None
    drawn = "".join(chr(31 + t) for part in (made.block, made.width) for t in part.input_ids.flat)
    held = "".join(chr(31 + token) for token in made.heldout.input_ids.flat)
    assert ("a" in drawn, "b" in drawn, "a" in held, "b" in held) == (True, False, False, True)


def test_each_sequence_of_gemma_begins_with_bos(tmp_path: Path) -> None:
    """Its tokenizer puts one before a text, so that without care only the first window of many
    would have it.
    """
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *"0123456789wordsftex\n", "▁"]
    gemma = GemmaTokenizer({word: index for index, word in enumerate(dict.fromkeys(words))}, [])
    gemma.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    assert gemma("words")["input_ids"].count(2) == 1
    windows = text_windows(gemma, "words of text" * 5, 8)
    assert windows.shape == (9, 8)
    assert (windows[:, 0] == 2).all()
    assert gemma.decode(windows[:, 1:].flatten()) == ("words of text" * 5)[:63]
    made = make(replace(SPEC, path=str(write_text(tmp_path / "a.txt"))), gemma)
    assert [sorted(set(tokens.input_ids[:, 0])) for tokens in made.sets().values()] == [[2]] * 3
    assert not any((tokens.input_ids[:, 1:] == 2).any() for tokens in made.sets().values())


def test_the_seed_decides(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    spec = replace(SPEC, path=str(write_text(tmp_path / "a.txt")))
    one, same, other = (
        make(spec, tokenizer),
        make(spec, tokenizer),
        make(replace(spec, seed=1), tokenizer),
    )
    assert one.block.fingerprint == same.block.fingerprint != other.block.fingerprint


def test_fingerprints_see_shape_and_tokens() -> None:
    base = TokenSet(np.arange(12, dtype=np.int64).reshape(3, 4))
    assert (
        TokenSet(base.input_ids.reshape(4, 3)).fingerprint
        != base.fingerprint
        != TokenSet(base.input_ids + 1).fingerprint
    )
    assert TokenSet(base.input_ids.copy()).fingerprint == base.fingerprint
    assert re.fullmatch("[0-9a-f]{32}", base.fingerprint)
    assert (base.num_sequences, base.sequence_length) == (3, 4)
    assert TokenSet(base.input_ids.astype(">i8")).fingerprint == base.fingerprint


def test_batches() -> None:
    assert [len(batch) for batch in TokenSet(np.zeros((5, 2), dtype=np.int64)).batches(2)] == [
        2,
        2,
        1,
    ]


@pytest.mark.parametrize("local", [True, False], ids=["local file", "hub"])
def test_alpaca_as_published(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    """docs/concepts/method.md, "Calibration as published": a fifth with seed 42, its first half;
    random.seed(42), then the width rows, then the block rows; joined, one text, cut.
    """
    rows = [f"row {number} of the instructions" for number in range(400)]
    spec = replace(
        SPEC, source="alpaca", num_block_samples=20, num_width_samples=10, sequence_length=32
    )
    if local:
        path = tmp_path / "alpaca.jsonl"
        path.write_text("".join(json.dumps({"text": row, "output": "x"}) + "\n" for row in rows))
        spec = replace(spec, path=str(path))
    else:
        asked = []
        monkeypatch.setattr(
            "datasets.load_dataset",
            lambda path, **options: (
                asked.append((path, options)) or Dataset.from_dict({"text": rows})
            ),
        )
    made = make(spec, tokenizer)
    if not local:
        assert asked == [("tatsu-lab/alpaca", {"split": "train"})]
    test = Dataset.from_dict({"text": rows}).train_test_split(test_size=0.2, seed=42)["test"]
    part = test.train_test_split(test_size=0.5, seed=42)["train"]["text"]
    random.seed(42)
    for count, tokens in ((10, made.width), (20, made.block)):
        ids = tokenizer(
            "\n\n".join(part[index] for index in random.sample(range(len(part)), count))
        )["input_ids"]
        expected = np.array(ids[: len(ids) // 32 * 32]).reshape(-1, 32)
        np.testing.assert_array_equal(tokens.input_ids, expected)


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        (
            "wikitext2",
            [
                ("Salesforce/wikitext", "train", "wikitext-2-raw-v1"),
                ("Salesforce/wikitext", "test", "wikitext-2-raw-v1"),
            ],
        ),
        ("c4", [("allenai/c4", "train", None), ("allenai/c4", "validation", None)]),
        (
            "ptb",
            [
                ("ptb-text-only/ptb_text_only", "train", None),
                ("ptb-text-only/ptb_text_only", "test", None),
            ],
        ),
    ],
)
def test_hub_datasets(
    source: str,
    calls: list[object],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, parts = [], []

    def load(path: str, **options: object) -> Dataset:
        asked.append((path, options["split"], options.get("name")))
        parts.append({name: options.get(name) for name in ("data_files", "revision")})
        return Dataset.from_dict(
            {
                "sentence" if source == "ptb" else "text": [
                    f"{options['split']} row {number}" for number in range(60)
                ],
                "url": ["u"] * 60,
            }
        )

    monkeypatch.setattr("datasets.load_dataset", load)
    rows = replace(SPEC, num_block_samples=20, num_width_samples=10)
    made = make(replace(rows, source=source), tokenizer)  # type: ignore[arg-type]
    assert asked == calls
    assert [part["revision"] for part in parts] == [
        "refs/convert/parquet" if source == "ptb" else None
    ] * 2
    assert [part["data_files"] for part in parts] == [
        {  # the first shard of each split, of hundreds of gigabytes
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        }
        if source == "c4"
        else None
    ] * 2
    assert made.heldout is not None
    text = "".join(chr(31 + token) for token in made.heldout.input_ids.flatten())
    assert str(calls[1][1]) in text.replace("\x1f", "")  # type: ignore[index]


def test_wikitext_rows_are_joined_as_the_papers_do() -> None:
    assert wikitext_text(" = Title = \n \n Words . \n") == " = Title = \n\n\n\n\n Words . \n"


def test_rows_of_a_local_jsonl(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"body": f"row number {number}"}) + "\n" for number in range(50))
    )
    made = make(
        replace(SPEC, path=str(path), column="body", num_block_samples=20, num_width_samples=10),
        tokenizer,
    )
    assert made.block.num_sequences > made.width.num_sequences > 0
    with pytest.raises(InputError, match=r"line 1 of .* has no field 'text' \(it has: body\)"):
        make(replace(SPEC, path=str(path)), tokenizer)


def test_tokens(token_file: Path) -> None:
    made = make(
        replace(SPEC, source="tokens", path=str(token_file), sequence_length=32), vocab_size=128
    )
    assert (made.block.num_sequences, made.width.num_sequences) == (5, 3)
    np.testing.assert_array_equal(made.block.input_ids[:3], made.width.input_ids)
    assert made.heldout is not None
    assert not set(map(tuple, made.heldout.input_ids)) & set(map(tuple, made.block.input_ids))


def test_bad_input(tmp_path: Path, token_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    empty, short, floats, broken = (
        tmp_path / name
        for name in ("empty.txt", "short.txt", "floats.safetensors", "broken.safetensors")
    )
    empty.write_text(" \n")
    short.write_text("too short")
    save_file({"input_ids": np.zeros((3, 32), dtype=np.float32)}, floats)
    broken.write_bytes(b"not safetensors")
    tokens = replace(SPEC, source="tokens", path=str(token_file), sequence_length=32)
    for spec, message in (
        (replace(SPEC, path=str(tmp_path / "none.txt")), "calibration.path: no file .*none.txt"),
        (replace(SPEC, path=None), "calibration.path: missing"),
        (replace(SPEC, path=str(empty)), "is empty"),
        (replace(SPEC, path=str(short)), r"3 \+ 5 sequences of 16 tokens asked for .* gives 0"),
        (
            replace(tokens, path=str(floats)),
            r"integer input_ids .* holds input_ids \[3, 32\] float32",
        ),
        (replace(tokens, path=str(broken)), "not a readable safetensors file"),
        (
            replace(tokens, sequence_length=64),
            "calibration.sequence_length: 64, but the sequences in .* have 32 tokens",
        ),
        (replace(tokens, num_block_samples=25), "25 sequences asked for, .* has 24"),
    ):
        with pytest.raises(InputError, match=message):
            make(spec, tokenizer, vocab_size=128)
    with pytest.raises(InputError, match=r"token id 1?\d\d, outside the model's vocabulary 0..63"):
        make(tokens, vocab_size=64)


@pytest.mark.parametrize(("token", "vocab_size"), [(-1, 128), (127, 127), (127, 128)])
def test_tokens_are_those_of_the_vocabulary(tmp_path: Path, token: int, vocab_size: int) -> None:
    path = tmp_path / "tokens.safetensors"
    input_ids = np.zeros((24, 32), dtype=np.int64)
    input_ids[:, 3] = token
    save_file({"input_ids": input_ids}, path)
    spec = replace(SPEC, source="tokens", path=str(path), sequence_length=32)
    if 0 <= token < vocab_size:
        assert make(spec, vocab_size=vocab_size).block.input_ids.max() == token
        return
    message = f"set has token id {token}, outside the model's vocabulary 0..{vocab_size - 1}"
    with pytest.raises(InputError, match=message):
        make(spec, vocab_size=vocab_size)


def test_rows_too_few_or_too_short(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc"}\n' * 30)
    spec = replace(SPEC, path=str(path))
    with pytest.raises(InputError, match="num_width_samples: 200, but text has 27 rows"):
        make(replace(spec, num_width_samples=200), tokenizer)
    with pytest.raises(InputError, match="3 rows are shorter than one sequence of 160 tokens"):
        make(replace(spec, sequence_length=160), tokenizer)


def test_hub_away(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> None:
    def away(path: str, **options: object) -> Dataset:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", away)
    with pytest.raises(
        InputError,
        match=(
            r"'allenai/c4' is neither in the local cache nor to be had from the hub "
            r".*calibration=pydoc"
        ),
    ):
        make(replace(SPEC, source="c4"), tokenizer)


@pytest.mark.parametrize(
    ("num_block", "said"),
    [
        (22, ""),  # of 24
        (23, "2 asked for, 1 left: the held-out perplexity is over 1 sequences"),
        (24, "2 asked for, 0 left: the held-out perplexity is not measured"),
    ],
)
def test_text_that_is_not_left_for_the_report_is_said(
    num_block: int, said: str, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(SPEC, source="tokens", path=str(token_file), num_block_samples=num_block)
    with caplog.at_level(logging.WARNING):
        made = make(spec, vocab_size=128)
    assert (made.heldout.num_sequences if made.heldout else 0) == 24 - num_block
    assert [record.getMessage() for record in caplog.records] == (
        [f"calibration.num_heldout_samples: {said}"] if said else []
    )


def test_a_set_of_no_sequences_is_in_any_vocabulary(token_file: Path) -> None:
    spec = replace(SPEC, source="tokens", path=str(token_file), num_width_samples=0)
    assert make(spec, vocab_size=128).width.input_ids.shape == (0, 16)


def test_a_text_may_be_just_long_enough(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Eight sequences are drawn from, of 143 characters; what is left is shorter than one."""
    (tmp_path / "short.txt").write_text("x" * 143 + "\n" + "y" * 10)
    spec = replace(SPEC, path=str(tmp_path / "short.txt"))
    made = make(spec, tokenizer)
    assert [tokens.num_sequences for tokens in made.sets().values()] == [5, 3]
    for block, width, asked in (
        (
            6,
            3,
            r"3 \+ 6 sequences of 16 tokens asked for \(num_width_samples \+ num_block_samples\)",
        ),
        (9, 0, "^calibration: 9 sequences of 16 tokens asked for, the text gives 8"),
    ):
        with pytest.raises(InputError, match=asked):
            make(replace(spec, num_block_samples=block, num_width_samples=width), tokenizer)


@pytest.mark.parametrize(
    ("tensors", "held"),
    [
        ({}, "nothing"),
        ({"ids": np.zeros((24, 32), dtype=np.int64)}, r"ids \[24, 32\] int64"),
        ({"input_ids": np.zeros(24, dtype=np.int64)}, r"input_ids \[24\] int64"),
        ({"input_ids": np.zeros((2, 24, 32), dtype=np.int32)}, r"input_ids \[2, 24, 32\] int32"),
    ],
)
def test_files_that_hold_no_sequences_are_refused(
    tensors: dict[str, npt.NDArray[Any]], held: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "file")
    spec = replace(SPEC, source="tokens", path=str(tmp_path / "file"))
    with pytest.raises(InputError, match=rf"integer input_ids .*; it holds {held}$"):
        make(spec)


def test_all_rows_may_be_drawn(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row number {number:03d}"}}\n' for number in range(30)))
    made = make(
        replace(SPEC, path=str(path), num_block_samples=27, num_width_samples=27), tokenizer
    )
    length = len("\n\n".join(["row number 000"] * 27)) // 16
    assert (made.block.num_sequences, made.width.num_sequences) == (length, length)
    assert made.block.fingerprint != made.width.fingerprint
    assert made.heldout is not None
    assert made.heldout.num_sequences == 2
