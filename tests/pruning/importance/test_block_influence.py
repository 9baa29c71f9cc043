"""Block influence against a computation of its own, in double precision."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from pruning.errors import ScoringError
from pruning.importance.block_influence import BlockInfluence, LayerSimilarity, layer_similarity
from pruning.importance.channel_order import channel_order, reorder
from pruning.models.loaded_model import LoadedModel
from pruning.shape import Removal
from tests.conftest import tiny_config, tiny_model, tokens


def in_double(model: nn.Module, ids: torch.Tensor) -> list[float]:
    """With what transformers itself says flows between layers.

    The last entry of `hidden_states` is behind the final norm: that layer is run again.
    """
    model = model.double()
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        captured: dict[str, torch.Tensor] = {}
        hook = model.model.norm.register_forward_pre_hook(
            lambda _module, inputs: captured.setdefault("last", inputs[0])
        )
        model.model(ids, past_key_values=DynamicCache(config=model.config))
        hook.remove()
    states = [*states[:-1], captured["last"]]
    found = []
    for entering, leaving in itertools.pairwise(states):
        pairs = zip(entering.flatten(0, 1), leaving.flatten(0, 1), strict=True)
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in pairs]
        found.append(1 - math.fsum(cosines) / len(cosines))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_it_is_one_minus_the_mean_cosine(family: str) -> None:
    model, ids = tiny_model(tiny_config(family)), tokens(6, 24)
    dense = LoadedModel.of(model)
    found = BlockInfluence.of([layer_similarity(dense, batch) for batch in ids.split(2)])
    assert not any(layer._forward_hooks for layer in dense.layers)
    assert len(found.values) == 4
    assert len(set(found.values)) == 4
    assert found.values == pytest.approx(in_double(model, ids), abs=1e-6)


class Turn(nn.Module):
    """Multiplies by a matrix, and returns it as some families' layers do: before a cache."""

    def __init__(self, matrix_DD: list[list[float]]) -> None:
        super().__init__()
        self.matrix_DD = torch.tensor(matrix_DD, dtype=torch.float32)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_states @ self.matrix_DD, torch.zeros_like(hidden_states)


def test_layers_may_take_names_and_return_tuples() -> None:
    """A quarter turn, twice as much, and the other way: 0, 1 and -1 for each of six tokens."""
    layers = [Turn([[0, 1], [-1, 0]]), Turn([[2, 0], [0, 2]]), Turn([[-1, 0], [0, -1]])]

    def base_model(input_ids: torch.Tensor, **_: Any) -> None:
        states_BTD = torch.stack([input_ids, input_ids + 1], dim=-1).float()
        for layer in layers:
            states_BTD = layer(hidden_states=states_BTD)[0]

    dense: Any = SimpleNamespace(layers=layers, model=SimpleNamespace(base_model=base_model))
    found = layer_similarity(dense, tokens(2, 3))
    assert found.num_tokens == 6
    assert found.cosine_sums == pytest.approx((0.0, 6.0, -6.0), abs=1e-6)
    assert BlockInfluence.of([found]).values == pytest.approx((1.0, 0.0, 2.0), abs=1e-6)


def test_sorting_the_weights_changes_no_more_than_the_last_digits() -> None:
    dense, ids = LoadedModel.of(tiny_model(tiny_config("llama"))), tokens(4, 24)
    before = layer_similarity(dense, ids)
    assert layer_similarity(dense, ids) == before, "the same bits again"
    reorder(dense, channel_order(dense, "l1"))
    assert layer_similarity(dense, ids).cosine_sums == pytest.approx(before.cosine_sums, rel=1e-6)


def test_whole_layers_go_in_ascending_order_and_ties_to_the_lower() -> None:
    path = BlockInfluence((0.5, 0.1, 0.3, 0.1)).path
    assert [group[0].layer for group in path] == [1, 3, 2, 0]
    assert path[0] == (Removal("attention", 1, 0), Removal("mlp", 1, 0))


def test_batches_weigh_as_many_tokens_as_they_have() -> None:
    assert BlockInfluence.of(
        [LayerSimilarity((3.0, 0.0), 4), LayerSimilarity((1.0, 1.0), 1)]
    ).values == (1 - 4 / 5, 1 - 1 / 5)


def test_it_is_saved_with_its_source(tmp_path: Path) -> None:
    influence = BlockInfluence((0.1, 1 / 3))
    influence.save(tmp_path / "file.json")
    assert BlockInfluence.load(tmp_path / "file.json") == influence
    assert "2403.03853" in (tmp_path / "file.json").read_text()


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ScoringError, match="not finite in layer 1.*float32"):
        BlockInfluence((0.1, math.nan))
