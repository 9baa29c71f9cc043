"""Parameters, FLOPs and KV-cache bytes of any shape, from the configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruning.costs.dense_sizes import dense_sizes
from pruning.costs.sizes import BlockSizes, DenseSizes
from pruning.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOT_KNOWN = "not known"
"""What people read in the place of a number that is None."""


def shown_count(count: float) -> str:
    """Parameters in words: 260,032, 134.52 M, 6.74 G."""
    if count < 1e6:
        return f"{count:,.0f}"
    return f"{count / 1e6:.2f} M" if count < 1e9 else f"{count / 1e9:,.2f} G"


class Accounting:
    """What a shape of one model costs.

    Counts follow the published convention (docs/concepts/method.md, "Parameter accounting"): a
    removed block takes its projections with it, but the norm of its residual branch still counts,
    so that ratios compare with the paper's. `num_stored_parameters` is the true count without those
    norms.

    Args:
        model: configuration of the dense model, or its sizes where they are known.
        keep_qkv_bias: count the q, k, v biases of removed KV heads and attention blocks as still
            there, as two of the published runs do.
    """

    def __init__(
        self,
        model: PretrainedConfig | DenseSizes,
        *,
        keep_qkv_bias: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        sizes = (
            model
            if isinstance(model, DenseSizes)
            else dense_sizes(model, trust_remote_code=trust_remote_code)
        )
        self.family, self.geometry = sizes.family, sizes.geometry
        self.dense = sizes.geometry.dense
        self.keep_qkv_bias = keep_qkv_bias
        self.num_dense_parameters = sizes.num_parameters
        self.head_weights = sizes.head_weights
        self._attention, self._mlp, self._reads = sizes.attention, sizes.mlp, sizes.reads

    def num_parameters(self, shape: ModelShape) -> int:
        """Parameters of `shape` by the published convention: norms of removed blocks included."""
        return self.num_dense_parameters - sum(
            self._removed(block, kept, full, keep_bias)
            for block, kept, full, keep_bias in self._blocks_of(shape)
        )

    def num_block_parameters(self, shape: ModelShape) -> int:
        """Those of its attentions and MLPs, without norms."""
        gone = ModelShape((LayerShape(0, 0),) * len(shape.layers))
        return self.num_parameters(shape) - self.num_parameters(gone)

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

    def flops_per_token(self, shape: ModelShape, *, context_length: int) -> int | None:
        """FLOPs of one token's forward pass at the mean position of a causal context of that many
        tokens.

        Two per weight of every matrix multiplication (head included, embedding look-up not; of a
        mixture, the experts that the token is sent to), and two for each product with a key or
        value at `context_length / 2` positions, or at those in the layer's window.

        Returns:
            None where they are not known: of latent attention, which programs compute in different
            ways, and of models whose matrices are not all understood.
        """
        if self.head_weights is None:
            return None
        layers = [
            self.layer_flops(index, layer, context_length=context_length)
            for index, layer in enumerate(shape.layers)
        ]
        known = [flops for flops in layers if flops is not None]
        return 2 * self.head_weights + sum(known) if len(known) == len(layers) else None

    def layer_flops(self, index: int, layer: LayerShape, *, context_length: int) -> int | None:
        """The same of one layer alone, of which `layer` is left."""
        reads, dense = self._reads[index], self.dense.layers[index]
        attention, mlp = self._attention[index], self._mlp[index]
        if attention.weights is None or mlp.weights is None or reads.products is None:
            return None
        doubled = context_length if reads.window is None else min(context_length, 2 * reads.window)
        flops = reads.products * layer.kv_heads // dense.kv_heads * doubled
        if layer.kv_heads:
            gone = (dense.kv_heads - layer.kv_heads) * attention.weights_per_unit
            flops += 2 * (attention.weights - gone)
        if layer.mlp_channels:
            gone = (dense.mlp_channels - layer.mlp_channels) * mlp.weights_per_unit
            flops += 2 * (mlp.weights - gone)
        return flops

    def kv_cache_bytes_per_token(self, shape: ModelShape, *, bytes_per_value: int) -> int | None:
        """Keys and values of one token over all layers, while it is in the window of each; of
        latent attention, the latents.

        Returns:
            None where they are not known: of families that keep something else.
        """
        cached = [
            None if reads.cached is None else reads.cached * kept.kv_heads // full.kv_heads
            for reads, kept, full in zip(self._reads, shape.layers, self.dense.layers, strict=True)
        ]
        known = [values for values in cached if values is not None]
        return sum(known) * bytes_per_value if len(known) == len(cached) else None

    def kv_cache_bytes(
        self, shape: ModelShape, *, context_length: int, bytes_per_value: int
    ) -> int | None:
        """Keys and values of one sequence at the end of a context: all of its tokens, or those in
        the window of a layer.

        Returns:
            None where they are not known; see `kv_cache_bytes_per_token`.
        """
        if self.kv_cache_bytes_per_token(shape, bytes_per_value=bytes_per_value) is None:
            return None
        return bytes_per_value * sum(
            (reads.cached or 0)
            * kept.kv_heads
            // full.kv_heads
            * (context_length if reads.window is None else min(context_length, reads.window))
            for reads, kept, full in zip(self._reads, shape.layers, self.dense.layers, strict=True)
        )

    def _removed(self, block: BlockSizes, kept: int, full: int, keep_bias: bool) -> int:
        bias = block.bias_per_unit * (full - kept) if keep_bias else 0
        if kept == 0:
            return block.total - bias
        return (full - kept) * block.per_unit - bias

    def _blocks_of(self, shape: ModelShape) -> list[tuple[BlockSizes, int, int, bool]]:
        """(block, units kept, units of the dense block, biases stay) of every block."""
        rows: list[tuple[BlockSizes, int, int, bool]] = []
        for attention, mlp, kept, full in zip(
            self._attention, self._mlp, shape.layers, self.dense.layers, strict=True
        ):
            rows.append((attention, kept.kv_heads, full.kv_heads, self.keep_qkv_bias))
            rows.append((mlp, kept.mlp_channels, full.mlp_channels, False))
        return rows
