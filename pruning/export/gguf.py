"""A pruned model as one GGUF file for llama.cpp, architecture `deci`: the only one whose head
counts and MLP widths differ per layer.

Names and meanings of the fields are those of llama.cpp's `gguf-py/gguf/constants.py`; how its
`deci` graph treats absent blocks was measured (docs/concepts/formats.md, "GGUF") and decides what
stands in for them here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pruning.errors import InputError
from pruning.export.gguf_tokenizer import Field, tokenizer_fields
from pruning.export.llama_like import llama_problems, rope_parameters
from pruning.export.source import ExportSource
from pruning.export.surgery import PrunedLayer, pruned_layers, pruned_tensors
from pruning.models.families import Family
from pruning.models.geometry import Geometry
from pruning.shape import ModelShape

ARCHITECTURE = "deci"

CHANNEL_STEP = 32
"""MLPs are filled up with zero channels, which add nothing, to a multiple of this: no quantized
type of llama.cpp has smaller blocks, and llama-quantize refuses files with other widths. It is also
the width of the zero MLP of a layer that has attention only: without one, llama.cpp silently
forgets that layer's attention.
"""

FILE_TYPES = {
    torch.float32: ("f32", LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
    torch.float16: ("f16", LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
    torch.bfloat16: ("bf16", LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16),
}

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One tensor of the file, made from that of the model when it is written.

    Args:
        shape: in the file; what it has more than `tensor` is filled with zeros.
        heads: the rows are those of so many heads, to be put in llama.cpp's order; 0 if they are
            not.
    """

    name: str
    tensor: torch.Tensor
    shape: tuple[int, ...]
    heads: int = 0


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
    return llama_problems(config, family, "gguf")


def tokenizer_problems(
    folder: Path, config: PretrainedConfig, tokenizer_gguf: Path | None = None
) -> list[str]:
    """Whether `write` would refuse the tokenizer, which can be known before anything is loaded; see
    there for the arguments.
    """
    try:
        tokenizer_fields(folder, config.vocab_size, tokenizer_gguf)
    except InputError as error:
        return [str(error)]
    return []


def file_name(dtype: torch.dtype) -> str:
    """Of the one file in the folder."""
    return f"model-{FILE_TYPES[dtype][0]}.gguf"


def write(folder: Path, source: ExportSource, *, tokenizer_gguf: Path | None = None) -> int:
    """Writes the file, one tensor at a time.

    Args:
        tokenizer_gguf: a GGUF of the dense model, whose tokenizer is copied; without one it is made
            from the files in `source.tokenizer_folder`.

    Returns:
        Number of values in the file, zeros that fill it up included.

    Raises:
        InputError: the tokenizer cannot be told to llama.cpp.
    """
    config, geometry = source.dense.model.config, source.dense.geometry
    layers = layers_of(source.shape, source.dense.family)
    vocabulary = tokenizer_fields(source.tokenizer_folder, config.vocab_size, tokenizer_gguf)
    entries = [
        *_pruned(source, layers),
        *_stand_ins(layers, config.hidden_size, geometry),
        *_rotary_factors(config, geometry),
    ]
    writer = GGUFWriter(folder / file_name(source.dtype), ARCHITECTURE)
    _add_settings(writer, config, geometry, layers)
    writer.add_file_type(FILE_TYPES[source.dtype][1])
    _add_fields(writer, vocabulary)
    for entry in entries:
        stored = _stored_type(entry, source.dtype)
        num_bytes = math.prod(entry.shape) * stored.itemsize
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), num_bytes, FILE_TYPES[stored][2]
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_values(entry, _stored_type(entry, source.dtype)))
    finally:
        writer.close()
    return sum(math.prod(entry.shape) for entry in entries)


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in llama.cpp's order: rotary pairs next to each other, which transformers
    keeps half a head apart.
    """
    rows = tensor.shape[0] // heads
    return (
        tensor.reshape(heads, 2, rows // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    )


def _pruned(source: ExportSource, layers: tuple[PrunedLayer, ...]) -> Iterator[Entry]:
    """The pruned model's tensors, which are views of the dense model's."""
    prefix, geometry = source.dense.family.layers + ".", source.dense.geometry
    for name, tensor in pruned_tensors(source.dense, layers):
        module, _, kind = name.rpartition(".")
        if not name.startswith(prefix):
            yield Entry(f"{_OUTSIDE[module]}.{kind}", tensor, tuple(tensor.shape))
            continue
        number, _, inside = module.removeprefix(prefix).partition(".")
        layer = layers[int(number)]
        heads = {
            "self_attn.q_proj": layer.kv_heads * geometry.queries_per_kv_head,
            "self_attn.k_proj": layer.kv_heads,
        }.get(inside, 0)
        shape = list(tensor.shape)
        if inside in ("mlp.gate_proj", "mlp.up_proj"):
            shape[0] = _channels(layer)
        elif inside == "mlp.down_proj" and kind == "weight":
            shape[1] = _channels(layer)
        yield Entry(f"blk.{number}.{_INSIDE[inside]}.{kind}", tensor, tuple(shape), heads)


def _stand_ins(
    layers: tuple[PrunedLayer, ...], hidden_size: int, geometry: Geometry
) -> Iterator[Entry]:
    """Blocks of zeros that add nothing, where llama.cpp cannot do without a block: attention in
    layer 0, an MLP after every attention.
    """
    nothing, one = torch.zeros(0, 0), torch.ones(1)
    for number, layer in enumerate(layers):
        rows, norm = {}, ""
        if number == 0 and not layer.kv_heads:
            norm = "attn_norm"
            rows = {
                "attn_q": geometry.channels_per_kv_head,
                "attn_k": geometry.head_dim,
                "attn_v": geometry.head_dim,
                "attn_output": 0,
            }
            columns = geometry.channels_per_kv_head
        elif not layer.mlp_channels:
            norm = "ffn_norm"
            rows = {"ffn_gate": CHANNEL_STEP, "ffn_up": CHANNEL_STEP, "ffn_down": 0}
            columns = CHANNEL_STEP
        if rows:
            yield Entry(f"blk.{number}.{norm}.weight", one.expand(hidden_size), (hidden_size,))
        for name, size in rows.items():
            shape = (size, hidden_size) if size else (hidden_size, columns)
            yield Entry(f"blk.{number}.{name}.weight", nothing, shape)


def _rotary_factors(config: PretrainedConfig, geometry: Geometry) -> Iterator[Entry]:
    """What llama.cpp divides each rotary frequency by, as a tensor; none where the frequencies are
    not scaled.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    exponents = torch.arange(0, geometry.head_dim, 2, dtype=torch.float32) / geometry.head_dim
    yield Entry(
        "rope_freqs.weight", rope["rope_theta"] ** -exponents / scaled, tuple(exponents.shape)
    )


def _add_settings(
    writer: GGUFWriter,
    config: PretrainedConfig,
    geometry: Geometry,
    layers: tuple[PrunedLayer, ...],
) -> None:
    kv_heads = [layer.kv_heads or int(number == 0) for number, layer in enumerate(layers)]
    writer.add_type("model")
    writer.add_quantization_version(2)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length([_channels(layer) for layer in layers])
    writer.add_head_count([count * geometry.queries_per_kv_head for count in kv_heads])
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_rope_freq_base(rope_parameters(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_fields(writer: GGUFWriter, fields: list[Field]) -> None:
    for field in fields:
        writer.add_key_value(field.key, field.value, field.type, field.sub_type)


def _channels(layer: PrunedLayer) -> int:
    """Width of a layer's MLP in the file."""
    return max(1, math.ceil(layer.mlp_channels / CHANNEL_STEP)) * CHANNEL_STEP


def _stored_type(entry: Entry, dtype: torch.dtype) -> torch.dtype:
    """llama.cpp adds and multiplies vectors, such as norms and biases, in float32 only."""
    return torch.float32 if len(entry.shape) == 1 else dtype


def _values(entry: Entry, dtype: torch.dtype) -> NDArray[np.generic]:
    tensor = entry.tensor.detach().to("cpu", dtype)
    if entry.heads:
        tensor = interleaved(tensor, entry.heads)
    if entry.shape != tuple(tensor.shape):
        more = [size - had for size, had in zip(entry.shape, tensor.shape, strict=True)]
        tensor = functional.pad(tensor, [side for size in reversed(more) for side in (0, size)])
    tensor = tensor.contiguous()
    return (
        tensor.view(torch.int16).numpy() if dtype is torch.bfloat16 else tensor.numpy()
    )  # numpy has no bfloat16: its bits
