"""What the benchmark of masks compares. Real times are never asserted."""

from __future__ import annotations

import pytest
import torch

from experiments.benchmarks import masks
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

BASE = ModelShape.dense(4, 2, 32)


def test_every_layer_is_narrowed_and_every_candidate_differs_in_one_block() -> None:
    base = masks.narrowed(ModelShape.dense(2, 3, 512))
    assert base.layers == (LayerShape(2, 256),) * 2
    base = ModelShape.dense(2, 2, 300)
    assert [shape.text for shape in masks.candidates_of(base)] == [
        *("2x44 2x300", "0x300 2x300"),
        *("2x300 2x44", "2x300 0x300"),
    ]


def test_both_ways_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "CHANNELS", 16)
    dense = LoadedModel.of(tiny_model(tiny_config("llama")))
    candidates = masks.candidates_of(BASE)
    assert all(seconds > 0 for seconds in masks.measure(dense, candidates))
    assert masks.scored(dense, BASE, candidates, tokens()) > 0
    answers = iter(range(100))
    monkeypatch.setattr(
        masks,
        "score_candidates",
        lambda *given: torch.full((len(given[2]), len(tokens())), float(next(answers))),
    )
    with pytest.raises(AssertionError, match="the two ways differ"):
        masks.scored(dense, BASE, candidates, tokens())
