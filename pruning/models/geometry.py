"""The sizes of a dense model that shapes are measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pruning.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Part = Literal["q", "k", "v", "gate", "up", "down"]


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
    attention = geometry.kv_heads * geometry.channels_per_kv_head
    return 8 * (attention**2 + geometry.mlp_channels**2)
