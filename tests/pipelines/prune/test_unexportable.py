"""A model of which only some shapes can be opened later: found before the search."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.evaluate.models import models_of_run
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape
from tests.pipelines.conftest import Cli, Search
from tests.pruning.export.test_layer_settings import REFUSED, model_of

REASON = "cannot be written or evaluated without some of its layers"
SHAPE = ModelShape.parse("0x0 3x48*5")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Every second layer is a mixture of experts, by its number."""
    folder = tmp_path / "mixture"
    model_of("ernie4_5_moe", REFUSED["ernie4_5_moe"][0]).save_pretrained(folder)
    return f"model.path={folder}"


@pytest.mark.parametrize(
    "wanted",
    [
        ["export=transformers"],
        ["evaluation=zero_shot", "evaluation.tasks=[]", "evaluation.cost=true"],
    ],
    ids=["export", "evaluation"],
)
def test_it_is_refused_before_the_search(model: str, wanted: list[str], search: Search) -> None:
    outcome = search(model, "search.distribution=[100,0,0]", *wanted)
    assert outcome.status == 2
    assert REASON in outcome.output
    assert "moe_layer_interval=2" in outcome.output
    assert not (outcome.folder / "trajectory.jsonl").exists()


def test_a_search_alone_warns(model: str, search: Search) -> None:
    outcome = search(model, "search.distribution=[100,0,0]", "search.target_ratio=0.1")
    assert outcome.status == 0, outcome.output
    [line] = [line for line in outcome.output.splitlines() if REASON in line]
    assert " WARNING " in line


def test_export_of_a_shape_that_it_cannot_have_names_the_setting(
    model: str, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE.to_json()))
    refused = cli("export", model, f"shape={path}", "importance=none", folder="out")
    assert refused.status == 2, refused.output
    assert REASON in refused.output
    assert "moe_layer_interval=2" in refused.output
    assert not (tmp_path / "out").exists()


def test_evaluation_of_a_shape_that_it_cannot_have_is_refused(model: str) -> None:
    checkpoint = Checkpoint(Path(model.partition("=")[2]))
    run: Any = SimpleNamespace(
        checkpoint=checkpoint,
        accounting=Accounting(checkpoint.config()),
        shape=SHAPE,
        fingerprint="",
        order=None,
        recovery=None,
        dtype="float32",
    )
    config: Any = SimpleNamespace(model=SimpleNamespace(dtype="auto"))
    with pytest.raises(InputError, match=REASON):
        models_of_run(config, run)
