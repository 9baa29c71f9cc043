"""Keys and values of a text are not kept where nothing goes on with it: they would take memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruning.models.loaded_model import LoadedModel
from pruning.recovery.loss import distillation_kl, next_token_nll
from pruning.scoring.generation import continuations
from pruning.scoring.kl import dense_outputs, divergence
from pruning.scoring.nll import run_prefix, score_candidates, sequence_nll
from pruning.scoring.residual import require_plain_residual
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

IDS = tokens(2, 8)
CANDIDATE = ModelShape.parse("3x0 3x48*3")
"""All layers run again."""


def scored(dense: LoadedModel) -> None:
    score_candidates(dense, run_prefix(dense, dense.geometry.dense, IDS), [CANDIDATE])


def compared(dense: LoadedModel) -> None:
    prefix = run_prefix(dense, dense.geometry.dense, IDS)
    divergence(dense, prefix, dense_outputs(dense, IDS), [CANDIDATE])


@pytest.mark.parametrize(
    "run",
    [
        scored,
        compared,
        require_plain_residual,
        lambda dense: sequence_nll(dense.model, IDS),
        lambda dense: next_token_nll(dense.model, IDS),
        lambda dense: distillation_kl(dense.model, dense.model, IDS),
        lambda dense: continuations(dense, dense.geometry.dense, [IDS[:1]], num_tokens=2),
    ],
    ids=["scores", "divergence", "residual", "nll", "next_token_nll", "kl", "continuations"],
)
def test_no_layer_is_given_a_cache(run: Callable[[LoadedModel], object]) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config("llama")))
    given: list[object] = []

    def see(_layer: nn.Module, _inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append(named["past_key_values"])

    for layer in dense.layers:
        layer.register_forward_pre_hook(see, with_kwargs=True)
    with torch.inference_mode():
        dense.model(IDS)
    assert given.pop() is not None, "a model keeps them unless it is told not to"
    given.clear()
    run(dense)
    assert given
    assert set(given) == {None}
