"""Memory of evaluators, before there are any."""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels
from pruning.models.dtypes import NUM_BYTES
from pruning.models.geometry import NUM_SIZES, Geometry, factor_bytes, gram_bytes
from pruning.scoring.kept_bytes import kept_bytes
from pruning.shape import ModelShape

STATISTICS_BYTES = 8_000_000_000
"""Of Gram matrices that one task sums at most, if one layer's are not larger. Whatever does not fit
takes another pass over the text.
"""


def evaluator_bytes(
    num_parameters: int, dtype: str, batch_tokens: int, hidden_size: int, num_layers: int
) -> int:
    """Memory that one evaluator needs, estimated: weights, the sorted copy of the largest of them,
    what the layers returned, and the process.
    """
    width = NUM_BYTES[dtype]
    return (
        int(num_parameters * width * 1.2 + batch_tokens * hidden_size * width * (num_layers + 8))
        + 600_000_000
    )


def layers_per_task(geometry: Geometry, num_evaluators: int) -> int:
    """Layers whose statistics one task collects: every evaluator has a share, as far as its memory
    goes.
    """
    share = -(-geometry.num_layers // num_evaluators)
    return max(1, min(share, STATISTICS_BYTES // gram_bytes(geometry)))


def compensation_bytes(geometry: Geometry, dtype: str, hidden_size: int) -> int:
    """Memory that compensation takes of an evaluator of shapes besides, estimated: what collecting
    statistics or what scoring takes, whichever is more.
    """
    scoring = NUM_SIZES * _refitted_bytes(geometry, dtype, hidden_size) + factor_bytes(geometry)
    return max(scoring, (layers_per_task(geometry, 1) + 1) * gram_bytes(geometry))


def shape_evaluator_bytes(
    accounting: Accounting,
    dtype: str,
    *,
    batch_tokens: int,
    hidden_size: int,
    compensated: bool,
    by_divergence: bool,
) -> int:
    """Memory of an evaluator that scores shapes, estimated.

    Args:
        compensated: what remains of blocks is refitted.
        by_divergence: it scores by KL, too.
    """
    geometry = accounting.geometry
    needed = evaluator_bytes(
        accounting.num_dense_parameters, dtype, batch_tokens, hidden_size, geometry.num_layers
    )
    if compensated:
        needed += compensation_bytes(geometry, dtype, hidden_size)
    if by_divergence:
        needed += kept_bytes(batch_tokens, (accounting.head_weights or 0) // hidden_size)
    return needed


def compensated_bytes(geometry: Geometry, dtype: str, hidden_size: int) -> int:
    """Memory that a compensated model takes besides, while it is made: refitted weights of every
    block, and the factors.
    """
    return _refitted_bytes(geometry, dtype, hidden_size) + factor_bytes(geometry)


def latency_evaluator_bytes(
    accounting: Accounting,
    dtype: str,
    *,
    batch_tokens: int,
    hidden_size: int,
    levels: Levels,
) -> int:
    """Memory of an evaluator of latencies, estimated: narrowed `o_proj` and `down_proj` of every
    model that is timed are copies.
    """
    geometry = accounting.geometry
    depth = min(levels.depth, geometry.num_layers)
    channels = sum(levels.mlp_channels) + geometry.channels_per_kv_head * sum(levels.kv_heads)
    return depth * channels * hidden_size * NUM_BYTES[dtype] + evaluator_bytes(
        accounting.num_dense_parameters, dtype, batch_tokens, hidden_size, depth
    )


def training_bytes(
    accounting: Accounting,
    shape: ModelShape,
    dtype: str,
    *,
    batch_tokens: int,
    hidden_size: int,
    vocab_size: int,
    logit_tokens: int,
    rank: int | None,
    num_kept: int = 0,
) -> int:
    """Memory of a training, estimated: the dense model, which the pruned one is cut from; what
    compensates it; value, gradient and two moments of all that is trained, in float32; what each
    layer keeps for the way back; logits and their gradients.

    Args:
        batch_tokens: that are in memory together.
        logit_tokens: whose logits are.
        rank: of adapters; None: whole matrices are trained, and their sums are kept for the way
            back.
        num_kept: parts of an update whose gradients are kept until all processes have theirs.
    """
    geometry = accounting.geometry
    if rank is None:
        values, each = accounting.num_block_parameters(shape), whole_bytes(dtype)
    else:
        channels = geometry.attention_channels + geometry.mlp_channels
        values, each = rank * geometry.num_layers * (7 * hidden_size + 4 * channels), 16
    kept = sum(
        8 * hidden_size * (bool(layer.kv_heads) + bool(layer.mlp_channels))
        + 4 * layer.kv_heads * geometry.channels_per_kv_head
        + 5 * layer.mlp_channels
        for layer in shape.layers
    )
    return (
        evaluator_bytes(accounting.num_dense_parameters, dtype, batch_tokens, hidden_size, 0)
        + _refitted_bytes(geometry, dtype, hidden_size)
        + values * (each + 4 * num_kept)
        + 4 * batch_tokens * kept
        + 20 * logit_tokens * vocab_size
    )


def whole_bytes(dtype: str) -> int:
    """For each weight of a matrix that is trained: difference, gradient and two moments in float32,
    and the rounded sum.
    """
    return 16 + NUM_BYTES[dtype]


def _refitted_bytes(geometry: Geometry, dtype: str, hidden_size: int) -> int:
    """Of `o_proj` and `down_proj` of every layer, at most."""
    channels = geometry.attention_channels + geometry.mlp_channels
    return geometry.num_layers * channels * hidden_size * NUM_BYTES[dtype]
