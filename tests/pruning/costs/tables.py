"""Tables of latencies by hand."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.costs.latency import BlockTimes, LatencyTable, PhaseTimes, Seconds
from pruning.costs.speed import SpeedSettings


def exact(prefill: float, decode: float) -> PhaseTimes:
    """Milliseconds that were the same in every round."""
    return PhaseTimes(*(Seconds(*[ms / 1e3] * 3, 0) for ms in (prefill, decode)))


def table(
    kv_heads: Mapping[int, tuple[float, float]],
    mlp_channels: Mapping[int, tuple[float, float]],
    *,
    rest: tuple[float, float] = (5, 7),
    fingerprint: str = "f" * 32,
) -> LatencyTable:
    """Of milliseconds (prefill, decode) by size."""
    return LatencyTable(
        "tiny",
        fingerprint,
        "float32",
        {"device": "cpu of a test", "num_threads": 1, "attention": "sdpa"},
        SpeedSettings(2, 6, 4, 3),
        4,
        BlockTimes(
            exact(*rest),
            {size: exact(*ms) for size, ms in kv_heads.items()},
            {size: exact(*ms) for size, ms in mlp_channels.items()},
        ),
    )
