"""Shapes that a plain checkpoint of the family can hold: where all layers are alike, the family's
own configuration says everything, and no code goes with the weights.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from pruning.export.surgery import PrunedLayer
from pruning.models.geometry import Geometry

_OWN = ("pruned", "auto_map", "model_type", "architectures", "transformers_version")


def plain_config(
    dense: PretrainedConfig,
    pruned: PretrainedConfig,
    geometry: Geometry,
    layers: tuple[PrunedLayer, ...],
) -> PretrainedConfig | None:
    """The family's own configuration of a pruned model; None where layers differ in size, where one
    lacks a block, or where heads are fewer in a family whose configuration has no head size: there,
    programs divide the hidden size by the heads, as vLLM does for Qwen2 whatever else is written.

    Args:
        dense: of the dense model.
        pruned: of the pruned model, with what counts layers changed.
    """
    first, whole = layers[0], geometry.dense.layers[0]
    sizes = {(layer.kv_heads, layer.mlp_channels) for layer in layers}
    if len(sizes) > 1 or not first.kv_heads or not first.mlp_channels:
        return None
    values = {name: value for name, value in pruned.to_dict().items() if name not in _OWN}
    if first.mlp_channels != whole.mlp_channels:
        values["intermediate_size"] = first.mlp_channels
    if first.kv_heads != whole.kv_heads:
        if "head_dim" not in type(dense)().to_dict():
            return None
        values["head_dim"] = geometry.head_dim
        values["num_attention_heads"] = first.kv_heads * geometry.queries_per_kv_head
        values["num_key_value_heads"] = first.kv_heads
    plain: PretrainedConfig = type(dense).from_dict(values)
    [of_the_code] = pruned.architectures or []
    plain.architectures = dense.architectures or [of_the_code.removeprefix("Pruned")]
    return plain
