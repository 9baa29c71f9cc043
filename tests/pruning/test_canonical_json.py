"""JSON holds finite numbers only: other programs cannot read `NaN`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipelines.runs.journal import Journal
from pruning.canonical_json import dump_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"nll": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(tmp_path / "trajectory.jsonl").append({"nll": value})


def test_text_is_indented_by_two_and_ends_its_line() -> None:
    data = {"b": [1, 0.5], "a": {"c": None}}
    assert dump_json(data) == (
        '{\n  "b": [\n    1,\n    0.5\n  ],\n  "a": {\n    "c": null\n  }\n}\n'
    )
