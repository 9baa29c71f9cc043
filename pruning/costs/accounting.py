"""Parameters, FLOPs and KV-cache bytes of any shape, from the configuration alone: the model is
built on the meta device and never allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from pruning.models.families import Cut, blocks, family_of
from pruning.models.geometry import Geometry
from pruning.models.meta_model import meta_model
from pruning.shape import LayerShape, ModelShape


@dataclass(frozen=True, slots=True)
class _Block:
    """Parameters of one block: `total`, of which `weights` are matrices; each KV head or MLP
    channel takes its share with it; its norms.
    """

    total: int
    weights: int
    per_unit: int
    weights_per_unit: int
    bias_per_unit: int
    norms: int


class Accounting:
    """What a shape of one model costs.

    Counts follow the published convention (docs/concepts/method.md, "Parameter accounting"): a
    removed block takes its projections with it, but the norm of its residual branch still counts,
    so that ratios compare with the paper's. `num_stored_parameters` is the true count without those
    norms.

    Args:
        config: configuration of the dense model.
        keep_qkv_bias: count the q, k, v biases of removed KV heads and attention blocks as still
            there, as two of the published runs do.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        keep_qkv_bias: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        model = meta_model(config, trust_remote_code=trust_remote_code)
        self.family = family_of(config, model)
        self.geometry = Geometry.of(config)
        self.dense = self.geometry.dense
        self.keep_qkv_bias = keep_qkv_bias
        self.num_dense_parameters = sum(parameter.numel() for parameter in model.parameters())
        head = model.get_output_embeddings()  # type: ignore[operator]
        self.head_weights = head.weight.numel() if head is not None else 0
        self._attention, self._mlp = [], []
        for layer, (attention, mlp) in zip(
            self.family.decoder_layers(model), blocks(model, self.family), strict=True
        ):
            self._attention.append(
                self._block(
                    layer, attention, self.family.attention_cuts, self.family.attention_norms
                )
            )
            self._mlp.append(self._block(layer, mlp, self.family.mlp_cuts, self.family.mlp_norms))

    def num_parameters(self, shape: ModelShape) -> int:
        """Parameters of `shape` by the published convention: norms of removed blocks included."""
        return self.num_dense_parameters - sum(
            self._removed(block, kept, full, keep_bias)
            for block, kept, full, keep_bias in self._blocks_of(shape)
        )

    def num_stored_parameters(self, shape: ModelShape) -> int:
        """Parameters of the tensors that a pruned checkpoint needs: norms of removed blocks are
        dropped.
        """
        return self.num_parameters(shape) - sum(
            block.norms for block, kept, _, _ in self._blocks_of(shape) if kept == 0
        )

    def ratio(self, shape: ModelShape) -> float:
        """Removed parameters / all parameters of the dense model, 0..1."""
        return (self.num_dense_parameters - self.num_parameters(shape)) / self.num_dense_parameters

    def flops_per_token(self, shape: ModelShape, *, context_length: int) -> int:
        """FLOPs of one token's forward pass at the mean position of a causal context of that many
        tokens.

        Two per weight of every matrix multiplication (head included, embedding look-up not), and
        for each query channel two for the score and two for the value at `context_length / 2`
        positions.
        """
        weights = self.head_weights
        for block, kept, full, _ in self._blocks_of(shape):
            if kept:
                weights += block.weights - (full - kept) * block.weights_per_unit
        query_channels = (
            sum(layer.kv_heads for layer in shape.layers) * self.geometry.channels_per_kv_head
        )
        return 2 * weights + 2 * query_channels * context_length

    def kv_cache_bytes_per_token(self, shape: ModelShape, *, bytes_per_value: int) -> int:
        """Keys and values of one token over all layers."""
        return (
            2
            * sum(layer.kv_heads for layer in shape.layers)
            * self.geometry.head_dim
            * bytes_per_value
        )

    def _removed(self, block: _Block, kept: int, full: int, keep_bias: bool) -> int:
        bias = block.bias_per_unit * (full - kept) if keep_bias else 0
        if kept == 0:
            return block.total - bias
        return (full - kept) * block.per_unit - bias

    def _blocks_of(self, shape: ModelShape) -> list[tuple[_Block, int, int, bool]]:
        """(block, units kept, units of the dense block, biases stay) of every block."""
        rows: list[tuple[_Block, int, int, bool]] = []
        for attention, mlp, kept, full in zip(
            self._attention, self._mlp, shape.layers, self.dense.layers, strict=True
        ):
            rows.append((attention, kept.kv_heads, full.kv_heads, self.keep_qkv_bias))
            rows.append((mlp, kept.mlp_channels, full.mlp_channels, False))
        return rows

    def _block(
        self, layer: nn.Module, block: nn.Module, cuts: tuple[Cut, ...], norms: tuple[str, ...]
    ) -> _Block:
        one = LayerShape(1, 1)
        per_unit = weights_per_unit = bias_per_unit = 0
        for cut in cuts:
            target = block.get_submodule(cut.module)
            weight, bias = target.weight, getattr(target, "bias", None)
            assert isinstance(weight, torch.Tensor)
            rows = sum(self.geometry.size(part, one) for part in cut.parts)
            share = rows * (weight.numel() // weight.shape[cut.dim])
            share_of_bias = rows if cut.dim == 0 and bias is not None else 0
            per_unit += share + share_of_bias
            bias_per_unit += share_of_bias
            weights_per_unit += share if weight.dim() > 1 else 0
        parameters = list(block.parameters())
        return _Block(
            total=sum(parameter.numel() for parameter in parameters),
            weights=sum(parameter.numel() for parameter in parameters if parameter.dim() > 1),
            per_unit=per_unit,
            weights_per_unit=weights_per_unit,
            bias_per_unit=bias_per_unit,
            norms=sum(
                parameter.numel()
                for name in norms
                for parameter in layer.get_submodule(name).parameters()
            ),
        )
