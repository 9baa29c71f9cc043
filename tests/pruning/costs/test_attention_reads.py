"""What attention does besides its weights, of projections made by hand: 6 query heads of 8 channels
in a residual stream of 40.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig
from transformers.pytorch_utils import Conv1D

from pruning.costs.attention_reads import attention_reads
from pruning.costs.sizes import AttentionReads

UNKNOWN = AttentionReads(None, None, None)
CONFIG = LlamaConfig(num_hidden_layers=2)


def linear(rows: int, columns: int = 40) -> nn.Linear:
    return nn.Linear(columns, rows)


def separate(**changes: nn.Module) -> dict[str, nn.Module]:
    """With a norm and biases, which are no matrices."""
    whole: dict[str, nn.Module] = {
        "q_proj": linear(48),
        "k_proj": linear(24),
        "v_proj": linear(24),
        "o_proj": linear(40, 48),
        "q_norm": nn.LayerNorm(8),
    }
    return whole | changes


def latent(*others: str) -> dict[str, nn.Module]:
    return {
        "kv_a_proj_with_mqa": linear(20),
        "kv_b_proj": linear(96, 16),
        "o_proj": linear(40, 48),
        **{name: linear(72) for name in others},
    }


def reads(modules: dict[str, nn.Module], config: Any = CONFIG, index: int = 0) -> AttentionReads:
    return attention_reads(nn.ModuleDict(modules), config, index)


@pytest.mark.parametrize(
    ("modules", "cached"),
    [
        (separate(), 24 + 24),
        (separate(k_proj=linear(48), v_proj=linear(48)), 48 + 48),
        (separate(k_proj=linear(1), v_proj=linear(1)), 1 + 1),
        ({"qkv_proj": linear(48 + 24 + 24), "o_proj": linear(40, 48)}, 24 + 24),
        ({"query_key_value": linear(48 + 8 + 8), "dense": linear(40, 48)}, 8 + 8),
        ({"c_attn": Conv1D(48 + 48 + 48, 40), "c_proj": Conv1D(40, 48)}, 48 + 48),
    ],
    ids=["grouped", "multi-head", "one channel", "fused", "multi-query", "GPT-2"],
)
def test_queries_meet_keys_and_values_that_several_may_share(
    modules: dict[str, nn.Module], cached: int
) -> None:
    assert reads(modules) == AttentionReads(2 * 48, cached, None)


@pytest.mark.parametrize("others", [("q_proj",), ("q_a_proj", "q_b_proj")])
def test_latents_are_kept_and_their_products_are_not_known(others: tuple[str, ...]) -> None:
    assert reads(latent(*others)) == AttentionReads(None, 20, None)


@pytest.mark.parametrize(
    "modules",
    [
        {name: module for name, module in separate().items() if name != "o_proj"},
        separate(out_proj=linear(40, 48)),
        separate(gate=linear(48)),
        separate(q_proj=linear(56)),
        separate(v_proj=linear(16)),
        separate(q_proj=linear(56), v_proj=linear(16)),
        separate(k_proj=linear(32), v_proj=linear(32)),
        latent("q_proj", "gate"),
        {"q_proj": linear(48), "o_proj": linear(40, 48)},
        {"mixed": linear(96), "o_proj": linear(40, 48)},
        {"qkv_proj": linear(96), "c_attn": linear(96), "o_proj": linear(40, 48)},
        {"qkv_proj": linear(48), "o_proj": linear(40, 48)},
        {"qkv_proj": linear(48 + 32 + 32), "o_proj": linear(40, 48)},
    ],
    ids=[
        "no output", "two outputs", "another matrix", "queries that do not come out",
        "values of another size than keys", "neither fits", "keys that no query heads share",
        "another matrix beside latents", "no keys", "another name", "two fused ones",
        "fused without keys", "fused, with keys that no query heads share",
    ],
)  # fmt: skip
def test_projections_that_are_not_understood(modules: dict[str, nn.Module]) -> None:
    assert reads(modules) == UNKNOWN


def test_layers_that_read_the_cache_of_another_one() -> None:
    shared: dict[str, Any] = {"num_kv_shared_layers": 1}
    assert reads(separate(), LlamaConfig(**shared)) == UNKNOWN


def test_a_cache_with_a_copy_for_every_query() -> None:
    attention = nn.ModuleDict(separate())
    attention.new_decoder_architecture = True  # type: ignore[assignment]
    assert attention_reads(attention, CONFIG, 0) == UNKNOWN
    attention.new_decoder_architecture = False  # type: ignore[assignment]
    assert attention_reads(attention, CONFIG, 0) == AttentionReads(96, 48, None)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, [(96, None)] * 2),
        ({"sliding_window": 8}, [(96, 8)] * 2),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            [(96, 8), (96, None)],
        ),
        (
            {"layer_types": ["sliding_attention", "full_attention"]},
            [(None, None), (96, None)],
        ),
        (
            {"sliding_window": 8, "layer_types": ["full_attention", "chunked_attention"]},
            [(96, None), (None, None)],
        ),
    ],
    ids=["none", "of all layers", "of some layers", "of no known size", "of another kind"],
)
def test_windows(changes: dict[str, Any], found: list[tuple[int | None, int | None]]) -> None:
    """Products where the positions are known, and the window of each layer."""
    config = LlamaConfig(num_hidden_layers=2, **changes)
    layers = [reads(separate(), config, index) for index in (0, 1)]
    assert [(each.products, each.window) for each in layers] == found
    assert {each.cached for each in layers} == {48}
