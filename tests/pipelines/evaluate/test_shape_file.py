"""A model that a shape file says, measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.shape import ModelShape
from tests.pipelines.evaluate.conftest import QUICK, Evaluate


@pytest.fixture
def narrowed(tmp_path: Path) -> Path:
    """One MLP of the reader keeps two thirds of its channels."""
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(ModelShape.parse("3x48 3x32 3x48*2").to_json()))
    return path


def test_a_folder_holds_one_channel_order(run: Evaluate, reader: Path, narrowed: Path) -> None:
    """Which channels remain decides the model as much as how many."""
    words = (
        f"shape={narrowed}", f"model.path={reader}", "evaluation.tasks=[piqa]",
        "evaluation.limit=2", *QUICK,
    )  # fmt: skip
    first, other, again = (run(*words, f"importance={name}") for name in ("l1", "none", "l1"))
    assert (first.status, other.status, again.status) == (0, 2, 0), other.output
    stored = first.evaluation["fingerprints"]["channel_order"]
    assert f"evaluation.order: {stored} there" in other.output
