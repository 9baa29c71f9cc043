from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.calibration.sources import measured_text, source_rows, wikitext_text
from pruning.calibration.spec import CalibrationSpec
from pruning.errors import InputError

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
        ('{"text": "one"}\n{"other": 2}\n', "calibration.column: line 2 of .* has no field"),
    ],
)
def test_rows_that_hold_no_text_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    spec = CalibrationSpec(
        "text",
        path=str(path),
        num_block_samples=1,
        num_width_samples=1,
        num_heldout_samples=1,
        sequence_length=16,
        seed=0,
    )
    with pytest.raises(InputError, match=message):
        source_rows(spec)
    with pytest.raises(
        InputError,
        match=message.replace("calibration.column", "o").replace("calibration.path", "o"),
    ):
        measured_text(str(path), option="o")
