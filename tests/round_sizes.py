"""A model whose counts are round numbers, for what is worked out by hand."""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.costs.sizes import AttentionReads, BlockSizes, DenseSizes
from pruning.models.families import FAMILIES, Family
from pruning.models.geometry import Geometry


def round_sizes(
    num_layers: int = 4,
    *,
    num_parameters: int = 1000,
    kv_heads: int = 4,
    mlp_channels: int = 6,
    queries_per_kv_head: int = 2,
    head_dim: int = 8,
    products: int | None = 8,
    head_weights: int | None = 50,
    family: Family = FAMILIES["llama"],
) -> Accounting:
    """A KV head and an MLP channel are 10 parameters each, and nothing else is in a block; by
    default an attention is 4 % of the model, an MLP 6 %.

    Args:
        products: of the attention of the last layer, for each position.
    """
    attention = BlockSizes(10 * kv_heads, 10 * kv_heads, 10, 10, 0, 0)
    mlp = BlockSizes(10 * mlp_channels, 10 * mlp_channels, 10, 10, 0, 0)
    reads = (*[AttentionReads(8, 8, None)] * (num_layers - 1), AttentionReads(products, 8, None))
    return Accounting(
        DenseSizes(
            family=family,
            geometry=Geometry(num_layers, kv_heads, queries_per_kv_head, head_dim, mlp_channels),
            hidden_size=8,
            num_parameters=num_parameters,
            head_weights=head_weights,
            attention=(attention,) * num_layers,
            mlp=(mlp,) * num_layers,
            reads=reads,
        )
    )
