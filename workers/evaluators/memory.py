"""Memory of evaluators, before there are any."""

from __future__ import annotations

from pruning.models.dtypes import NUM_BYTES


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
