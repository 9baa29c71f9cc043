"""What attention does besides its weights: the products with keys and values of earlier tokens, and
what it keeps of each token for later ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning.costs.sizes import AttentionReads

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SEPARATE = ("q_proj", "k_proj", "v_proj")
_FUSED = ("query_key_value", "qkv_proj", "c_attn")
_OUTPUT = ("o_proj", "out_proj", "dense", "c_proj")
_LATENT = "kv_a_proj_with_mqa"


_UNKNOWN = AttentionReads(None, None, None)


def attention_reads(attention: nn.Module, config: PretrainedConfig, index: int) -> AttentionReads:
    """From the projections of a layer's attention: queries against keys and values that several of
    them may share (multi-head, grouped and multi-query attention), or against latents
    (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    How often latents are expanded to keys and values depends on the program that runs the model,
    so that their products are not known.
    """
    config = config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0) or getattr(
        attention, "new_decoder_architecture", False
    ):  # Gemma 3n reads another layer's cache; Falcon-40B keeps a copy for every query
        return _UNKNOWN
    outputs = {name: _columns(module) for name, module in _matrices(attention).items()}
    rows = {name: _rows(module) for name, module in _matrices(attention).items()}
    output = [name for name in _OUTPUT if name in rows]
    if len(output) != 1:
        return _UNKNOWN
    inputs, queries = set(rows) - set(output), outputs[output[0]]
    if _LATENT in inputs and inputs <= {"q_proj", "q_a_proj", "q_b_proj", _LATENT, "kv_b_proj"}:
        return AttentionReads(None, rows[_LATENT], None)
    if inputs == set(_SEPARATE):
        keys, values = rows["k_proj"], rows["v_proj"]
        fits = rows["q_proj"] == queries and keys == values
    elif len(inputs) == 1 and inputs <= set(_FUSED):
        keys = values = (rows[inputs.pop()] - queries) // 2
        fits = True
    else:
        return _UNKNOWN
    if not fits or keys < 1 or queries % keys:
        return _UNKNOWN
    window, known = _window(config, index)
    return AttentionReads(2 * queries if known else None, keys + values, window)


def _matrices(attention: nn.Module) -> dict[str, nn.Module]:
    """By name, the modules in it that hold a matrix."""
    return {
        name: module
        for name, module in attention.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    }


def _rows(module: nn.Module) -> int:
    """Channels that a projection gives; GPT-2's (`Conv1D`) lie the other way round."""
    return int(_weight(module).shape[0 if isinstance(module, nn.Linear) else -1])


def _columns(module: nn.Module) -> int:
    return int(_weight(module).shape[-1 if isinstance(module, nn.Linear) else 0])


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _window(config: PretrainedConfig, index: int) -> tuple[int | None, bool]:
    """The window of a layer (None: none), and whether that is known."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return window, True
    return {"full_attention": (None, True), "sliding_attention": (window, window is not None)}.get(
        layer_types[index], (None, False)
    )
