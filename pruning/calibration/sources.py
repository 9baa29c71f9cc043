"""Where text comes from: the hub, local files, Python's own documentation."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

from pruning.calibration.hub import load_hub_dataset
from pruning.calibration.spec import CalibrationSpec
from pruning.errors import InputError, first_line


def measured_text(name: str, *, option: str, folder: Path | None = None) -> str:
    """The text that a perplexity is measured on.

    Args:
        name: `wikitext2`, the test split of WikiText-2; or a file: .jsonl with a column `text`,
            whose rows are joined with two newlines, .raw as WikiText is distributed, or any other
            plain text.
        option: that names it, for messages.
        folder: where a local copy of WikiText-2 may lie, as wikitext2.test.raw.

    Raises:
        InputError: it is not there or not text.
    """
    if name == "wikitext2":
        copy = folder / "wikitext2.test.raw" if folder else None
        if copy is not None and copy.is_file():
            return wikitext_text(_read_text(str(copy), option))
        return "\n\n".join(
            _hub_dataset(
                "Salesforce/wikitext", option=option, name="wikitext-2-raw-v1", split="test"
            )["text"]
        )
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"{option}: {name} is neither wikitext2 nor a file; give a text file (.txt, .raw) or "
            "a .jsonl with a column text"
        )
    if path.suffix == ".jsonl":
        return "\n\n".join(_read_jsonl(path, "text", option, option))
    text = _read_text(name, option)
    return wikitext_text(text) if path.suffix == ".raw" else text


def wikitext_text(raw: str) -> str:
    """The text of a WikiText raw file as the papers tokenize it: the hub's rows (blank ones empty,
    others with their newline) joined with two newlines.
    """
    return "\n\n".join(line if line.strip() else "" for line in StringIO(raw))


def running_text(spec: CalibrationSpec) -> tuple[str, str] | None:
    """(text to calibrate on, text held out), or None when the source is rows."""
    if spec.source == "pydoc":
        return _split_text("\n\n".join(text for _, text in sorted(_pydoc_topics().items())))
    if spec.source == "wikitext2":
        if spec.path is not None:
            return _split_text(wikitext_text(_read_text(spec.path, f"{spec.option}.path")))
        train, test = (
            _hub_dataset(
                "Salesforce/wikitext", option=spec.option, name="wikitext-2-raw-v1", split=split
            )["text"]
            for split in ("train", "test")
        )
        return "\n\n".join(train), "\n\n".join(test)
    if spec.source == "text":
        path = required_path(spec, "a text file, or a .jsonl file with one row a line")
        if path.suffix == ".jsonl":
            return None
        return _split_text(_read_text(str(path), f"{spec.option}.path"))
    return None


def source_rows(spec: CalibrationSpec) -> tuple[list[str], list[str]]:
    """(rows to draw from, rows held out)."""
    if spec.source == "alpaca":
        return _alpaca(spec)
    if spec.path is not None:
        rows = _rows_of_file(spec, spec.column or "text")
        cut = len(rows) - max(1, len(rows) // 10)
        return rows[:cut], rows[cut:]
    if spec.source == "c4":
        files = {
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        }
        pair = [
            _hub_rows(spec, "allenai/c4", column="text", data_files=files, split=split)
            for split in files
        ]
    else:
        # The dataset's main branch is a loading script, which current versions of `datasets` do not
        # run; the hub's conversion holds the same rows.
        pair = [
            _hub_rows(
                spec,
                "ptb-text-only/ptb_text_only",
                column="sentence",
                revision="refs/convert/parquet",
                split=split,
            )
            for split in ("train", "test")
        ]
    return pair[0], pair[1]


def _alpaca(spec: CalibrationSpec) -> tuple[list[str], list[str]]:
    """The published split: a fifth of the rows is the test part, its first half is drawn from, its
    second half is held out here.
    """
    import datasets

    column = spec.column or "text"
    if spec.path is None:
        rows = _hub_dataset("tatsu-lab/alpaca", option=spec.option, split="train")
    else:
        rows = datasets.Dataset.from_dict({column: _rows_of_file(spec, column)})
    test = rows.train_test_split(test_size=0.2, seed=42)["test"]
    halves = test.train_test_split(test_size=0.5, seed=42)
    return list(halves["train"][column]), list(halves["test"][column])


def _hub_rows(spec: CalibrationSpec, path: str, *, column: str, **options: Any) -> list[str]:
    """Those of `spec.column`, else of `column`."""
    rows, wanted = _hub_dataset(path, option=spec.option, **options), spec.column or column
    if wanted not in rows.column_names:
        raise InputError(
            f"{spec.option}.column: {path} has no column {wanted!r}; it has "
            f"{', '.join(rows.column_names)}"
        )
    return [row for row in rows[wanted] if row]


def _hub_dataset(path: str, *, option: str, **options: Any) -> Any:
    try:
        return load_hub_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        local = (
            f"{option}.path=FILE, or use {_choice(option, 'pydoc')}, which needs no network"
            if option.startswith("calibration")
            else f"{option}=[FILE]"
        )
        raise InputError(
            f"{option}: dataset {path!r} is neither in the local cache nor to be had from the "
            f"hub ({first_line(error)}). Give a local copy with {local}"
        ) from error


def _pydoc_topics() -> dict[str, str]:
    from pydoc_data import topics

    found: dict[str, str] = topics.topics
    return found


def _split_text(text: str) -> tuple[str, str]:
    """The first nine tenths, and the rest, parted at a blank line; where the rest has none, at a
    line break, else between words.
    """
    start = len(text) * 9 // 10
    for separator in ("\n\n", "\n", " "):
        if (boundary := text.find(separator, start)) >= 0:
            return text[:boundary], text[boundary + len(separator) :]
    return text[:start], text[start:]


def _rows_of_file(spec: CalibrationSpec, column: str) -> list[str]:
    path = Path(spec.path or "").expanduser()
    return _read_jsonl(path, column, f"{spec.option}.path", f"{spec.option}.column")


def _read_text(path: str, option: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot read {path} as UTF-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"{option}: {path} is empty")
    return text


def _read_jsonl(path: Path, column: str, option: str, column_option: str) -> list[str]:
    rows = []
    # str.splitlines would also split at U+2028, U+0085 and others, which JSON strings may hold
    for number, line in enumerate(_read_text(str(path), option).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(row[column])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            fields = ", ".join(row) if isinstance(error, KeyError) else "not JSON"
            raise InputError(
                f"{column_option}: line {number} of {path} has no field {column!r} "
                f"(it has: {fields})"
            ) from error
        if not isinstance(rows[-1], str):
            raise InputError(
                f"{column_option}: field {column!r} of line {number} in {path} is not text"
            )
    return [row for row in rows if row]


def required_path(spec: CalibrationSpec, what: str) -> Path:
    """The path that a source needs.

    Raises:
        InputError: none is given, or it is not there.
    """
    choice = _choice(spec.option, spec.source)
    if spec.path is None:
        raise InputError(f"{spec.option}.path: missing; {choice} needs {what}")
    path = Path(spec.path).expanduser()
    if not path.is_file():
        raise InputError(f"{spec.option}.path: no file {spec.path}; {choice} needs {what}")
    return path


def _choice(option: str, source: str) -> str:
    """How a source is chosen, alone or in a mixture."""
    return f"calibration={source}" if option == "calibration" else f"source: {source}"
