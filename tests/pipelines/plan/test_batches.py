"""What a plan says of batches that evaluators share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.conftest import Cli
from tests.pipelines.plan.test_plan import LLAMA_2, SIZES


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["cluster.num_evaluators=5"], "5 evaluators share 4 batches"),
        (["cluster.num_evaluators=4"], ""),
        (["cluster.num_evaluators=64", "calibration.batch_size=1"], ""),
        (
            ["cluster.num_evaluators=64", "calibration.batch_size=16"],
            "64 evaluators share 1 batch,",
        ),
    ],
)
def test_more_evaluators_than_batches_are_told_what_makes_more(
    tmp_path: Path, cli: Cli, words: list[str], note: str
) -> None:
    """Of 8 sequences for widths; with a batch for each of them there is nothing to gain."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2 | SIZES["7B"]))
    given = [f"model.path={tmp_path}", "calibration=alpaca", "search.target_ratio=0.2", *words]
    outcome = cli("plan", *given, "measure_rate=false")
    assert outcome.status == 0, outcome.output
    said = " ".join(outcome.output.split())
    assert note in said
    assert ("calibration.batch_size makes up to 8 batches" in said) == bool(note)
