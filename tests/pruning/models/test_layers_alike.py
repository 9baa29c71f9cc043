"""Models whose layers differ in size are refused from their configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PretrainedConfig

from pruning.costs.known_sizes import sizes_of
from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.models.layers_alike import refuse_varying
from tests.conftest import SIZES

WINDOWED = {
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "num_kv_shared_layers": 0,
}
VARYING: dict[str, tuple[dict[str, Any], str]] = {
    "heads of Gemma 4": (
        {"model_type": "gemma4_text", "head_dim": 8, "global_head_dim": 16} | WINDOWED,
        "has layers that differ in head_dim (8, 16)",
    ),
    "widths of a Llama": (
        {"model_type": "llama", "per_layer_config": {"2": {"intermediate_size": 24}}},
        "has layers that differ in intermediate_size (48, 24)",
    ),
    "skipped blocks": (
        {"model_type": "llama", "per_layer_config": {"2": {"skip": ["mlp"]}}},
        "has layers that differ in skip ([], ['mlp'])",
    ),
    "a list of widths": (
        {"model_type": "llama", "intermediate_size": [48, 48, 24, 24]},
        "'intermediate_size' expected int, got list (value: [48, 48, 24, 24])",
    ),
    "widths of Gemma 3n": (
        {
            "model_type": "gemma3n_text",
            "intermediate_size": [48, 48, 24, 24],
            "activation_sparsity_pattern": [0.0] * 4,
        }
        | WINDOWED,
        "has layers that differ in intermediate_size (48, 24)",
    ),
    "shared layers of Gemma 4": (
        {
            "model_type": "gemma4_text",
            "head_dim": 8,
            "global_head_dim": 8,
            "use_double_wide_mlp": True,
        }
        | WINDOWED
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
        "mlp.gate_proj.weight is [48, 48] in layer 0 and [96, 48] in layer 2",
    ),
}


@pytest.mark.parametrize("name", VARYING)
def test_layers_that_differ(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    changes, says = VARYING[name]
    (tmp_path / "config.json").write_text(json.dumps(SIZES | changes))
    with pytest.raises(InputError) as refused:
        sizes_of(str(tmp_path))
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_sizes_in_lists_that_transformers_lets_pass() -> None:
    """Configurations of remote code have fields of any type."""
    config = PretrainedConfig(num_key_value_heads=[3, 3, 2, 2])
    with pytest.raises(InputError, match=r"num_key_value_heads \(3, 2\)"):
        refuse_varying(config)
    refuse_varying(LlamaConfig())


def test_layers_of_experts_and_ordinary_ones_may_be_mixed(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0, 2],
    }
    (tmp_path / "config.json").write_text(json.dumps(SIZES | config))
    sizes = sizes_of(str(tmp_path))
    assert sizes.mlp[0].total != sizes.mlp[1].total
    assert Checkpoint(tmp_path).config().model_type == "qwen3_moe"
