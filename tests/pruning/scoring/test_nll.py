"""How scores are computed: in which type, in which chunks, and with layers that do not run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pruning.models.loaded_model import LoadedModel
from pruning.scoring.nll import (
    ReplayedLayer,
    chunk_tokens,
    run_prefix,
    score_candidates,
    sequence_nll,
)
from tests.conftest import tiny_config, tiny_model, tokens


def test_the_loss_is_computed_in_float32() -> None:
    """In bfloat16 it would be off by more than a thousandth."""
    model = tiny_model(tiny_config("llama")).to(torch.bfloat16)
    with torch.inference_mode():
        logits = model(tokens(), use_cache=False).logits[:, :-1].double()
    expected = -torch.log_softmax(logits, dim=-1).gather(2, tokens()[:, 1:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(sequence_nll(model, tokens()), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 128), ("cuda", 512), ("meta", 128)])
def test_how_many_tokens_have_logits_at_one_time(device: str, expected: int) -> None:
    """Other numbers are other last digits, which must not be mixed with those that are stored."""
    assert chunk_tokens(torch.device(device)) == expected


def test_without_candidates_there_is_a_row_for_none() -> None:
    dense = LoadedModel.of(tiny_model(tiny_config("llama")))
    found = score_candidates(dense, run_prefix(dense, dense.geometry.dense, tokens(3, 8)), [])
    assert (found.shape, found.dtype) == ((0, 3), torch.float64)


def test_a_replayed_layer_returns_what_it_did_and_is_the_layer_otherwise() -> None:
    layer: Any = nn.Linear(2, 3)
    output = (torch.ones(1),)
    layer.attention_type = "sliding_attention"
    replayed = ReplayedLayer(layer, output)
    assert replayed(torch.zeros(1, 2), position_ids=None) is output
    assert (replayed.attention_type, replayed.in_features) == ("sliding_attention", 2)
    assert not list(replayed.parameters()), "none of its weights"
    with pytest.raises(AttributeError, match="no_such_name"):
        replayed.no_such_name  # noqa: B018


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_prefix_that_is_known_in_part_is_that_of_a_whole_run(model_type: str) -> None:
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    whole, layers = dense.geometry.dense, list(dense.layers)
    wanted = run_prefix(dense, whole, tokens())
    found = run_prefix(dense, whole, tokens(), wanted.layer_outputs[:2])
    assert len(found.layer_outputs) == len(wanted.layer_outputs) == 4
    for one, other in zip(found.layer_outputs, wanted.layer_outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert list(dense.layers) == layers, "all of them are back"
    assert not any(layer._forward_hooks for layer in layers)
