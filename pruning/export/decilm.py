"""A pruned model as a DeciLM folder (`model_type: nemotron-nas`), which vLLM serves with its own
implementation and stock transformers opens.

Which fields mean what was read from vLLM 0.32: `model_executor/models/nemotron_nas.py` and
`transformers_utils/model_arch_config_convertor.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from pruning.canonical_json import dump_json
from pruning.export import configuration_decilm, modeling_decilm, modeling_pruned
from pruning.export.llama_like import llama_problems, rope_parameters
from pruning.export.source import ExportSource
from pruning.export.surgery import PrunedLayer, pruned_layers, pruned_tensors
from pruning.export.transformers import copy_tokenizer
from pruning.models.families import Family
from pruning.models.geometry import Geometry
from pruning.models.loaded_model import LoadedModel
from pruning.models.shards import MAX_SHARD_BYTES, write_shards
from pruning.shape import ModelShape

CODE = tuple(
    Path(module.__file__ or "")
    for module in (configuration_decilm, modeling_decilm, modeling_pruned)
)
"""The files of code that go into the folder."""

MODEL_TYPE = configuration_decilm.DeciLMConfig.model_type

CHANNEL_STEP = 256
"""`ffn_mult` can only say multiples of this many MLP channels: whoever reads it rounds up."""

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)


def layers_of(
    shape: ModelShape,
    family: Family,  # noqa: ARG001 - all formats are called alike
) -> tuple[PrunedLayer, ...]:
    """The layers that are written; half layers are paired."""
    return pruned_layers(shape, pair=True)


def problems(
    config: PretrainedConfig,
    family: Family,
    geometry: Geometry,  # noqa: ARG001 - all formats are called alike
    shape: ModelShape,  # noqa: ARG001
) -> list[str]:
    """What this format cannot express, from the configuration alone. Every shape can be."""
    return llama_problems(config, family, "decilm")


def write(folder: Path, source: ExportSource, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Writes configuration, code, weights and tokenizer; returns the number of values in the
    weights, zeros that fill up heads included.
    """
    model, layers = source.dense.model, layers_of(source.shape, source.dense.family)
    (folder / "config.json").write_text(dump_json(decilm_config(source, layers)), encoding="utf-8")
    for path in CODE:
        code = path.read_text(encoding="utf-8").replace(
            "from pruning.export.", "from ."
        )  # in the folder they are beside one another
        (folder / path.name).write_text(code, encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    copy_tokenizer(source.tokenizer_folder, folder)
    return write_shards(
        folder,
        lambda: _tensors(source, layers),
        dtype=source.dtype,
        max_shard_bytes=max_shard_bytes,
    )


def decilm_config(source: ExportSource, layers: tuple[PrunedLayer, ...]) -> dict[str, Any]:
    """What `config.json` says."""
    config, geometry = source.dense.model.config, source.dense.geometry
    rope = rope_parameters(config)
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    configuration, modeling = CODE[0].stem, CODE[1].stem
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": f"{configuration}.DeciLMConfig",
            "AutoModel": f"{modeling}.DeciLMModel",
            "AutoModelForCausalLM": f"{modeling}.DeciLMForCausalLM",
        },
        "num_hidden_layers": len(layers),
        "head_dim": geometry.head_dim,
        "attention_bias": getattr(config, "attention_bias", False),
        "qkv_bias": source.dense.family.has_qkv_bias(config),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "rope_parameters": rope,
        "rope_theta": rope[
            "rope_theta"
        ],  # these two for programs that do not know `rope_parameters` yet
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "dtype": str(source.dtype).removeprefix("torch."),
        **{name: getattr(config, name, None) for name in _SHARED},
        "block_configs": [
            _block(number, layer, geometry, config.hidden_size)
            for number, layer in enumerate(layers)
        ],
    }


def register() -> None:
    """Lets AutoConfig, AutoModel and AutoModelForCausalLM open such folders without their code."""
    AutoConfig.register(MODEL_TYPE, configuration_decilm.DeciLMConfig, exist_ok=True)
    AutoModel.register(
        configuration_decilm.DeciLMConfig, modeling_decilm.DeciLMModel, exist_ok=True
    )
    AutoModelForCausalLM.register(
        configuration_decilm.DeciLMConfig, modeling_decilm.DeciLMForCausalLM, exist_ok=True
    )


def _block(
    number: int, layer: PrunedLayer, geometry: Geometry, hidden_size: int
) -> dict[str, dict[str, Any]]:
    kv_heads, channels = _kv_heads(number, layer, geometry), layer.mlp_channels
    num_heads = geometry.kv_heads * geometry.queries_per_kv_head
    ffn: dict[str, Any] = {"no_op": not channels, "replace_with_linear": False}
    if channels:
        ffn["intermediate_size"] = channels
    if channels % CHANNEL_STEP == 0:
        ffn["ffn_mult"] = 1.5 * channels / hidden_size if channels else None
    attention = {
        "no_op": not kv_heads,
        "replace_with_linear": False,
        "n_heads_in_group": num_heads // kv_heads if kv_heads else None,
    }
    return {"attention": attention, "ffn": ffn}


def _kv_heads(number: int, layer: PrunedLayer, geometry: Geometry) -> int:
    """KV heads in the file: query heads are as many as in the dense model in every layer, and each
    KV head serves as many of them as any other.

    vLLM needs attention in layer 0; one of zeros, with one KV head, stands in.
    """
    if not layer.kv_heads:
        return int(number == 0)
    num_heads = geometry.kv_heads * geometry.queries_per_kv_head
    return next(
        count for count in range(layer.kv_heads, geometry.kv_heads + 1) if num_heads % count == 0
    )


def _tensors(
    source: ExportSource, layers: tuple[PrunedLayer, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    prefix, geometry = source.dense.family.layers + ".", source.dense.geometry
    if not layers[0].kv_heads:
        yield from _zero_attention(f"{prefix}0.", source.dense)
    for name, tensor in pruned_tensors(source.dense, layers):
        number, _, inside = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and inside.startswith("self_attn."):
            layer = layers[int(number)]
            yield (
                name,
                _spread(
                    tensor,
                    inside.split(".")[1],
                    layer.kv_heads,
                    _kv_heads(int(number), layer, geometry),
                    geometry,
                ),
            )
        else:
            yield name, tensor


def _spread(
    tensor: torch.Tensor, projection: str, kv_heads: int, slots: int, geometry: Geometry
) -> torch.Tensor:
    """A tensor of an attention block with zeros for the heads that the layer lacks.

    Args:
        slots: KV heads in the file, each with the same number of query heads, of which the first
            `queries_per_kv_head` are the model's.
    """
    queries = geometry.kv_heads * geometry.queries_per_kv_head // slots
    if slots == kv_heads and queries == geometry.queries_per_kv_head:
        return tensor
    if projection in ("k_proj", "v_proj"):
        return functional.pad(
            tensor, (0, 0) * (tensor.dim() - 1) + (0, (slots - kv_heads) * geometry.head_dim)
        )
    dim = 1 if projection == "o_proj" else 0
    if dim >= tensor.dim():
        return tensor  # the output's bias
    groups = tensor.unflatten(dim, (kv_heads, geometry.channels_per_kv_head))
    sides = [(0, 0)] * groups.dim()
    sides[dim], sides[dim + 1] = (
        (0, slots - kv_heads),
        (0, queries * geometry.head_dim - geometry.channels_per_kv_head),
    )
    return functional.pad(groups, [side for pair in reversed(sides) for side in pair]).flatten(
        dim, dim + 1
    )


def _zero_attention(layer: str, dense: LoadedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """An attention block that adds nothing; its norm is there to be read."""
    config, geometry = dense.model.config, dense.geometry
    hidden, query = config.hidden_size, geometry.kv_heads * geometry.channels_per_kv_head
    yield f"{layer}input_layernorm.weight", torch.ones(hidden)
    for projection, rows in (
        ("q_proj", query),
        ("k_proj", geometry.head_dim),
        ("v_proj", geometry.head_dim),
    ):
        yield f"{layer}self_attn.{projection}.weight", torch.zeros(rows, hidden)
        if dense.family.has_qkv_bias(config):
            yield f"{layer}self_attn.{projection}.bias", torch.zeros(rows)
    yield f"{layer}self_attn.o_proj.weight", torch.zeros(hidden, query)
    if getattr(config, "attention_bias", False):
        yield f"{layer}self_attn.o_proj.bias", torch.zeros(hidden)
