"""Settings that count layers, in families where whole layers go: the folder computes what the
masked model does, or the model is refused before there is a shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.export.folder import FORMATS, format_problems
from pruning.export.layer_settings import layer_settings, shifted_settings
from pruning.export.source import ExportSource
from pruning.export.surgery import pruned_layers
from pruning.export.transformers import pruned_model, shapes_to_try, write
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens
from tests.pruning.export.sources import masked_logits
from tests.tiny_sizes import EXPERTS
from tests.tiny_sizes import LATENT as LATENT_FROM_1

LATENT = LATENT_FROM_1 | {"first_k_dense_replace": 2}

WINDOWS: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
}
WRITTEN: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS
    | {"num_experts": 4, "mlp_only_layers": [1, 4], "decoder_sparse_step": 2}
    | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen2_moe": EXPERTS
    | {"num_experts": 4, "mlp_only_layers": [3], "decoder_sparse_step": 1}
    | {"shared_expert_intermediate_size": 24},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe": EXPERTS
    | {"n_routed_experts": 4, "first_k_dense_replace": 3, "n_group": 1}
    | {"topk_group": 1},
    "dots1": EXPERTS
    | {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1}
    | {"topk_group": 1, "n_shared_experts": 1},
    "afmoe": EXPERTS | {"num_experts": 4, "num_dense_layers": 2, "sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere2": WINDOWS,
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "smollm3": {"no_rope_layer_interval": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "exaone4": WINDOWS,
    "minicpm3": {name: LATENT[name] for name in LATENT if name not in EXPERTS}
    | {"scale_depth": 1.4},
    "gpt2": {},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ernie4_5_moe": (
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 2,
        },
        "moe_layer_interval=2",
    ),
    "modernbert-decoder": ({}, "attn_norm"),
}


def model_of(model_type: str, changes: dict[str, Any]) -> PreTrainedModel:
    return tiny_model(tiny_config(model_type, num_hidden_layers=6, **changes))


def shapes(dense: LoadedModel) -> list[ModelShape]:
    """Some layers gone, and in the last one some halves."""
    full = dense.geometry.dense.layers[0]
    heads, channels = full.kv_heads, full.mlp_channels
    halves = f"0x{channels} {heads}x{channels} 0x0 {heads}x0 0x{channels} {heads}x{channels}"
    return [*shapes_to_try(dense.geometry), ModelShape.parse(halves)]


@pytest.mark.parametrize("model_type", sorted(WRITTEN))
def test_every_shape_computes_what_the_mask_does(model_type: str, tmp_path: Path) -> None:
    dense = LoadedModel.of(model_of(model_type, WRITTEN[model_type]))
    config, ids = dense.model.config, tokens(2, 24)
    assert format_problems("transformers", config, dense.family, dense.geometry) == []
    for number, shape in enumerate(shapes(dense)):
        source = ExportSource(dense, shape, tmp_path, torch.float32)
        wanted = masked_logits(source, ids)
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, source)
        opened = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        for model in (pruned_model(dense, shape), opened):
            with torch.inference_mode():
                found = model(ids).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=shape.text)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_what_no_setting_can_say_is_refused_without_a_shape(model_type: str) -> None:
    changes, named = REFUSED[model_type]
    dense = LoadedModel.of(model_of(model_type, changes))
    [problem] = format_problems("transformers", dense.model.config, dense.family, dense.geometry)
    assert repr(model_type) in problem
    assert "cannot be written or evaluated without some of its layers" in problem
    assert named in problem
    whole = dense.geometry.dense
    assert (
        FORMATS["transformers"].problems(dense.model.config, dense.family, dense.geometry, whole)
        == []
    )


def test_settings_that_count_layers() -> None:
    """Layers 1, 2 and 5 of six are left."""
    layers = pruned_layers(ModelShape.parse("0x0 2x8 2x0 0x0 0x0 0x8"), pair=False)
    before = {
        "layer_types": ["a", "b", "c", "d", "e", "f"],
        "no_rope_layers": [1, 1, 0, 1, 1, 0],
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "first_k_dense_replace": 3,
        "mlp_only_layers": [2],
        "decoder_sparse_step": 2,
        "scale_depth": 1.4,
        "hidden_size": 6,
    }
    after = shifted_settings(before, layers, 6)
    assert after == {
        "layer_types": ["b", "c", "f"],
        "no_rope_layers": [1, 0, 0],
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "first_k_dense_replace": 2,
        "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
        "scale_depth": pytest.approx(1.4 * (3 / 6) ** 0.5),
        "hidden_size": 6,
    }
    assert layer_settings(before | {"num_hidden_layers": 6, "use_layer_norm": True}) == [
        "decoder_sparse_step=2",
        "first_k_dense_replace=3",
        "layer_types=['a', 'b', 'c', 'd', 'e', 'f']",
        "mlp_only_layers=[2]",
        "no_rope_layers=[1, 1, 0, 1, 1, 0]",
    ]
