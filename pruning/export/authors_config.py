"""The authors' `pruning_config.json`, read into a shape and written from one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index as whole
from typing import Any

from pruning.errors import InputError
from pruning.shape import LayerShape, ModelShape, Removal


def read_authors_config(
    data: Mapping[str, Any], dense: ModelShape, *, channels_per_kv_head: int
) -> ModelShape:
    """Reads the `pruning_config.json` of the method's authors.

    Args:
        data: `pruned_attn_idx`, `pruned_mlp_idx` (removed blocks) and `pruned_attn_width` (query
            channels), `pruned_mlp_width` (MLP channels), both keyed by layer. One published file
            counts its MLP layers from the number of layers on; since the keys are the layers in
            order, that offset is subtracted.
        dense: shape of the unpruned model.
        channels_per_kv_head: query channels that share one KV head, `queries per KV head x
            head_dim`.

    Raises:
        InputError: a key is missing, or a layer or width does not belong to this model.
    """
    num_layers = len(dense.layers)
    try:
        removed_attention = {whole(layer) for layer in data["pruned_attn_idx"]}
        removed_mlp = {whole(layer) for layer in data["pruned_mlp_idx"]}
        attention_widths = _by_layer(data["pruned_attn_width"], num_layers)
        mlp_widths = _by_layer(data["pruned_mlp_width"], num_layers)
        outside = _outside(removed_attention | removed_mlp, num_layers)
    except KeyError as error:
        raise InputError(
            f"not a pruning_config.json of the authors' format: {error} is missing"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "not a pruning_config.json of the authors' format: it takes two lists of layers and "
            f"two widths by layer: {error}"
        ) from error
    layers = []
    for index, full in enumerate(dense.layers):
        kv_heads, rest = divmod(
            attention_widths.get(index, full.kv_heads * channels_per_kv_head), channels_per_kv_head
        )
        channels = mlp_widths.get(index, full.mlp_channels)
        if rest or not (0 <= kv_heads <= full.kv_heads and 0 <= channels <= full.mlp_channels):
            raise InputError(
                f"pruning_config.json does not fit this model: layer {index} has "
                f"{attention_widths.get(index)} query channels and {channels} MLP "
                f"channels; the model has {full.kv_heads} KV heads of {channels_per_kv_head} "
                f"query channels and {full.mlp_channels} MLP channels"
            )
        layers.append(
            LayerShape(
                0 if index in removed_attention else kv_heads,
                0 if index in removed_mlp else channels,
            )
        )
    if outside:
        raise InputError(
            "pruning_config.json does not fit this model: it removes blocks of layers "
            f"{outside}, the model has {num_layers} layers"
        )
    return ModelShape(tuple(layers))


def write_authors_config(
    shape: ModelShape, dense: ModelShape, removals: Sequence[Removal], *, channels_per_kv_head: int
) -> dict[str, Any]:
    """Writes `shape` in the format of the method's authors: removed blocks in order of removal, and
    the widths that every block had then.
    """
    widths = {
        index: (layer.kv_heads, layer.mlp_channels) for index, layer in enumerate(dense.layers)
    }
    for removal in removals:
        heads, channels = widths[removal.layer]
        if removal.kind == "attention_heads":
            widths[removal.layer] = (removal.remaining, channels)
        elif removal.kind == "mlp_channels":
            widths[removal.layer] = (heads, removal.remaining)
    config = {
        "pruned_attn_idx": [removal.layer for removal in removals if removal.kind == "attention"],
        "pruned_mlp_idx": [removal.layer for removal in removals if removal.kind == "mlp"],
        "pruned_attn_width": {
            str(index): heads * channels_per_kv_head for index, (heads, _) in widths.items()
        },
        "pruned_mlp_width": {str(index): channels for index, (_, channels) in widths.items()},
    }
    if read_authors_config(config, dense, channels_per_kv_head=channels_per_kv_head) != shape:
        raise ValueError("the removals do not lead to this shape")
    return config


def _by_layer(widths: Mapping[str, int], num_layers: int) -> dict[int, int]:
    layers = {int(key): whole(width) for key, width in widths.items()}
    offset = num_layers if layers and min(layers) >= num_layers else 0
    shifted = {key - offset: width for key, width in layers.items()}
    outside = _outside(shifted, num_layers)
    if outside:
        raise InputError(
            f"pruning_config.json does not fit this model: it has widths of layers {outside}, "
            f"the model has {num_layers} layers"
        )
    return shifted


def _outside(layers: Iterable[int], num_layers: int) -> list[int]:
    return sorted(index for index in layers if not 0 <= index < num_layers)
