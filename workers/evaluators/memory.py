"""Memory of evaluators, before there are any."""

from __future__ import annotations

from pruning.models.dtypes import NUM_BYTES
from pruning.models.geometry import Geometry, gram_bytes

STATISTICS_BYTES = 8_000_000_000
"""Of Gram matrices that one task sums at most, if one layer's are not larger. Whatever does not fit
takes another pass over the text.
"""
_KEPT_FACTORS, _KEPT_SIZES = 2, 2
"""What `pruning.compensation.least_squares.Compensation` keeps; imported, it would import torch."""


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
    """Memory that compensation takes of an evaluator besides, estimated: what collecting statistics
    or what scoring takes, whichever is more.
    """
    channels = geometry.kv_heads * geometry.channels_per_kv_head + geometry.mlp_channels
    refitted = _KEPT_SIZES * geometry.num_layers * channels * hidden_size * NUM_BYTES[dtype]
    scoring = refitted + _KEPT_FACTORS * gram_bytes(geometry)
    return max(scoring, (layers_per_task(geometry, 1) + 1) * gram_bytes(geometry))
