from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from pruning.calibration.sources import (
    measured_text,
    required_path,
    running_text,
    source_rows,
    wikitext_text,
)
from pruning.calibration.spec import CalibrationSpec
from pruning.errors import InputError

SPEC = CalibrationSpec(
    "text",
    num_block_samples=1,
    num_width_samples=1,
    num_heldout_samples=1,
    sequence_length=16,
    seed=0,
)

SEPARATORS = "one\u2028two\u0085three\x0bfour\x1cfive"


def test_lines_end_at_newlines_and_nowhere_else(tmp_path: Path) -> None:
    """JSON strings may hold U+2028 and U+0085 as they are, and Python's splitlines ends a line
    there.
    """
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in (SEPARATORS[:13], "six")]
    path.write_text("\n".join([*rows, ""]), encoding="utf-8")
    assert measured_text(str(path), option="o") == f"{SEPARATORS[:13]}\n\nsix"
    assert wikitext_text(f"{SEPARATORS}\n \nsix\n") == f"{SEPARATORS}\n\n\n\n\nsix\n"


def test_wikitext_is_read_where_it_lies_and_else_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def hub(path: str, **options: Any) -> dict[str, list[str]]:
        asked.append({"path": path} | options)
        return {"text": ["one", "two"]}

    monkeypatch.setattr("pruning.calibration.sources._hub_dataset", hub)
    split = {"name": "wikitext-2-raw-v1", "split": "test"}
    wanted = {"path": "Salesforce/wikitext", "option": "o"} | split
    for folder in (None, tmp_path):
        assert measured_text("wikitext2", option="o", folder=folder) == "one\n\ntwo"
    assert asked == [wanted, wanted]
    (tmp_path / "wikitext2.test.raw").write_text("three\n")
    assert measured_text("wikitext2", option="o", folder=tmp_path) == "three\n"
    assert len(asked) == 2
    (tmp_path / "own.txt").write_text("four")
    assert measured_text(str(tmp_path / "own.txt"), option="o", folder=tmp_path) == "four"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "calibration.path: .*rows.jsonl is empty"),
        ('{"text": "one"}\n{"text": 2}\n', "calibration.column: field 'text' of line 2 in "),
        (
            '{"text": "one"}\n\n{"other": 2, "more": 3}\n',
            r"calibration.column: line 3 of .* has no field 'text' \(it has: other, more\)",
        ),
        ('{"text": "one"}\n{"text"\n', r"calibration.column: line 2 of .* \(it has: not JSON\)"),
        ('["text"]\n', r"calibration.column: line 1 of .* \(it has: not JSON\)"),
    ],
)
def test_rows_that_hold_no_text_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    spec = replace(SPEC, path=str(path))
    with pytest.raises(InputError, match=message):
        source_rows(spec)
    with pytest.raises(
        InputError,
        match=message.replace("calibration.column", "o").replace("calibration.path", "o"),
    ):
        measured_text(str(path), option="o")


@pytest.mark.parametrize(
    ("num_rows", "drawn", "held_out"),
    [(2, 1, 1), (5, 4, 1), (10, 9, 1), (19, 18, 1), (20, 18, 2), (35, 32, 3)],
)
def test_the_last_tenth_of_a_files_rows_is_held_out_and_one_at_least(
    num_rows: int, drawn: int, held_out: int, tmp_path: Path
) -> None:
    rows = [f"row {number}" for number in range(num_rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"body": row}) + "\n" for row in ["", *rows, ""]))
    spec = replace(SPEC, source="c4", path=str(path), column="body")
    assert source_rows(spec) == (rows[:drawn], rows[drawn:])
    assert len(rows[drawn:]) == held_out


def test_rows_of_the_hub_are_those_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: Any) -> Dataset:
        split = options["split"]
        return Dataset.from_dict({"sentence": [f"{split} a", "", "b"], "url": ["x", f"{path}", ""]})

    monkeypatch.setattr("pruning.calibration.sources.load_hub_dataset", load)
    assert source_rows(replace(SPEC, source="ptb")) == (["train a", "b"], ["test a", "b"])
    other = source_rows(replace(SPEC, source="ptb", column="url"))
    assert other == (["x", "ptb-text-only/ptb_text_only"],) * 2
    message = "calibration.column: allenai/c4 has no column 'text'; it has sentence, url"
    with pytest.raises(InputError, match=message):
        source_rows(replace(SPEC, source="c4"))


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("calibration", "calibration.path=FILE, or use calibration=pydoc, which needs no network"),
        ("calibration.sources.2", "calibration.sources.2.path=FILE, or use source: pydoc, which"),
        ("data", r"data=\[FILE\]"),
    ],
)
def test_what_to_do_where_the_hub_does_not_answer(
    option: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("it is away\nfor long")

    def read() -> object:
        if option == "data":
            return measured_text("wikitext2", option=option)
        return running_text(replace(SPEC, source="wikitext2", option=option))

    monkeypatch.setattr("pruning.calibration.sources.load_hub_dataset", away)
    said = rf"^{option}: dataset 'Salesforce/wikitext' .*\(it is away\)\. Give a local .* {advice}"
    with pytest.raises(InputError, match=said):
        read()


def test_running_text_of_files(tmp_path: Path) -> None:
    """WikiText's raw file as the papers join it, other text as it is, rows not at all."""
    raw = "".join(f" line {number} . \n \n" for number in range(20))
    for name in ("wiki.raw", "own.txt", "rows.jsonl"):
        (tmp_path / name).write_text(raw)
    wikitext = running_text(replace(SPEC, source="wikitext2", path=str(tmp_path / "wiki.raw")))
    assert wikitext is not None
    assert "\n\n".join(wikitext) == wikitext_text(raw)
    own = running_text(replace(SPEC, path=str(tmp_path / "own.txt")))
    assert own is not None
    assert "\n".join(own) == raw
    assert len(raw) * 0.9 <= len(own[0]) < len(raw) * 0.96
    assert running_text(replace(SPEC, path=str(tmp_path / "rows.jsonl"))) is None
    assert running_text(replace(SPEC, source="c4")) is None
    assert measured_text(str(tmp_path / "wiki.raw"), option="o") == wikitext_text(raw)
    assert measured_text(str(tmp_path / "own.txt"), option="o") == raw


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"^calibration.path: cannot read .*bytes.txt as UTF-8"):
        running_text(replace(SPEC, path=str(tmp_path / "bytes.txt")))
    with pytest.raises(InputError, match=r"^o: cannot read .*bytes.txt as UTF-8"):
        measured_text(str(tmp_path / "bytes.txt"), option="o")
    with pytest.raises(InputError, match="^o: wikitext3 is neither wikitext2 nor a file"):
        measured_text("wikitext3", option="o")
    part = replace(SPEC, option="calibration.sources.0", path=str(tmp_path))
    said = f"^calibration.sources.0.path: no file {tmp_path}; source: text needs a map"
    with pytest.raises(InputError, match=said):
        required_path(part, "a map")
    with pytest.raises(InputError, match="^calibration.path: missing; calibration=text needs one"):
        required_path(SPEC, "one")
