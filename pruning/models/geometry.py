"""The sizes of a dense model that shapes are measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pruning.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Part = Literal["q", "k", "v", "gate", "up", "down"]

NUM_FACTORS = 2
"""Factors that a compensation keeps (`pruning.compensation.least_squares`): of both blocks of one
layer. One of 11,008 channels takes 1 GB.
"""
NUM_SIZES = 2
"""Refitted weights of one block that it keeps: a shape's own, and of a candidate."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of a dense model that shapes are measured in. All layers are alike."""

    num_layers: int
    kv_heads: int
    queries_per_kv_head: int
    head_dim: int
    mlp_channels: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Geometry:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        channels = (
            getattr(config, "intermediate_size", None)
            or getattr(config, "n_inner", None)
            or 4 * config.hidden_size
        )
        return cls(config.num_hidden_layers, kv_heads, heads // kv_heads, head_dim, channels)

    @property
    def dense(self) -> ModelShape:
        return ModelShape.dense(self.num_layers, self.kv_heads, self.mlp_channels)

    @property
    def channels_per_kv_head(self) -> int:
        """Query channels that share one KV head."""
        return self.queries_per_kv_head * self.head_dim

    @property
    def attention_channels(self) -> int:
        """Query channels of one layer, which flow into `o_proj`."""
        return self.kv_heads * self.channels_per_kv_head

    def problems(self, shape: ModelShape) -> list[str]:
        """Why a shape is not one of this model, one message each."""
        if len(shape.layers) != self.num_layers:
            return [f"it has {len(shape.layers)} layers, the model {self.num_layers}"]
        return [
            (
                f"layer {index} has {layer.kv_heads} KV heads and {layer.mlp_channels} MLP "
                "channels, "
                f"the model's have {self.kv_heads} and {self.mlp_channels}"
            )
            for index, layer in enumerate(shape.layers)
            if layer.kv_heads > self.kv_heads or layer.mlp_channels > self.mlp_channels
        ]

    def narrowed(self, shape: ModelShape) -> bool:
        """Whether a block of that shape keeps some of its heads or channels, and not all."""
        return any(
            0 < layer.kv_heads < self.kv_heads or 0 < layer.mlp_channels < self.mlp_channels
            for layer in shape.layers
        )

    def size(self, part: Part, layer: LayerShape) -> int:
        """Rows (or columns) of `part` in a layer of that shape."""
        if part == "q":
            return layer.kv_heads * self.channels_per_kv_head
        if part in ("k", "v"):
            return layer.kv_heads * self.head_dim
        return layer.mlp_channels


def gram_bytes(geometry: Geometry) -> int:
    """Bytes of both float64 Gram matrices of one layer, while they are summed; half of that on
    disk.
    """
    return 8 * (geometry.attention_channels**2 + geometry.mlp_channels**2)


def factor_bytes(geometry: Geometry) -> int:
    """Bytes of the factors that a compensation keeps, at most, while it makes another: of a Gram
    matrix in float32, its float64 copy and the factor.
    """
    of_one = 8 * max(geometry.attention_channels, geometry.mlp_channels) ** 2
    return NUM_FACTORS * of_one + 5 * of_one // 2
