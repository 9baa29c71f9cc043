from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from pruning.costs.accounting import Accounting, shown_count
from pruning.export.authors_config import read_authors_config
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import LayerShape, ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

SHAPES = [
    ModelShape.dense(4, 3, 48),
    ModelShape((LayerShape(0, 48), LayerShape(2, 0), LayerShape(1, 16), LayerShape(3, 5))),
]


@pytest.mark.data
def test_published_counts(shared: Path) -> None:
    """All published runs, dense and pruned, to the unit, from the config alone."""
    runs = json.loads((shared / "published/multipruner.json").read_text())
    assert len(runs) >= 20
    for run in runs:
        accounting = Accounting(
            AutoConfig.for_model(**run["config"]), keep_qkv_bias=run["model"].startswith("Qwen1.5")
        )
        assert accounting.num_parameters(accounting.dense) == run["total_params"], run["model"]
        shape = read_authors_config(
            run["pruning_config"],
            accounting.dense,
            channels_per_kv_head=accounting.geometry.channels_per_kv_head,
        )
        assert accounting.num_parameters(shape) == run["pruned_params"], (
            run["model"],
            run["target_ratio_percent"],
        )


@pytest.mark.parametrize("shape", SHAPES, ids=["dense", "hard"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_flops_against_torch(model_type: str, shape: ModelShape) -> None:
    """Torch's own counter sees every matrix product; it counts attention over all positions, ours
    the causal half, or the window where that is less.
    """
    accounting = Accounting(tiny_config(model_type))
    model = tiny_model(tiny_config(model_type, attn_implementation="eager"))
    ids = tokens(2, 24)
    with (
        torch.inference_mode(),
        FlopCounterMode(display=False) as counter,
        masked(LoadedModel.of(model), shape),
    ):
        model(ids, use_cache=False)
    positions = {"mistral": (8,) * 4, "gemma3_text": (8, 12) * 2}.get(model_type, (12,) * 4)
    unseen = sum(
        layer.kv_heads * accounting.geometry.channels_per_kv_head * 4 * (24 - seen)
        for layer, seen in zip(shape.layers, positions, strict=True)
    )
    rotary = 4 * 24 // 2 * (2 if model_type == "gemma3_text" else 1) * 2
    assert counter.get_total_flops() == pytest.approx(
        (accounting.flops_per_token(shape, context_length=24) + unseen) * ids.numel(),
        abs=rotary * 24,
    )


def test_kv_cache_bytes() -> None:
    accounting = Accounting(tiny_config("llama"))
    assert accounting.kv_cache_bytes_per_token(SHAPES[0], bytes_per_value=2) == 2 * 4 * 3 * 8 * 2
    assert accounting.kv_cache_bytes_per_token(SHAPES[1], bytes_per_value=4) == 2 * 6 * 8 * 4
    for family, kept in (("llama", 20), ("mistral", 8)):  # mistral has a window of 8
        found = Accounting(tiny_config(family)).kv_cache_bytes(
            SHAPES[1], context_length=20, bytes_per_value=4
        )
        assert found == kept * 2 * 6 * 8 * 4


def test_seventy_billion_are_never_allocated() -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accounting = Accounting(config)
    assert accounting.num_dense_parameters == 68_976_648_192
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 300e6


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (260_032, "260,032"),
        (1_000_000, "1.00 M"),
        (134_515_008, "134.52 M"),
        (1_000_000_000, "1.00 G"),
        (6_738_415_616, "6.74 G"),
        (1_026_000_000_000, "1,026.00 G"),
    ],
)
def test_a_count_in_words(count: int, words: str) -> None:
    assert shown_count(count) == words
