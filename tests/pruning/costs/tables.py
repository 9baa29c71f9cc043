"""Tables of latencies by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pruning.costs.latency import BlockTimes, LatencyTable, PhaseTimes, Seconds
from pruning.costs.speed import SpeedSettings
from pruning.models.checkpoint import Checkpoint

# Milliseconds (prefill, decode). An MLP of 40 channels is slower than the whole one, and one of 24
# than one of 32: to be fast, an MLP must take one of the other sizes.
MLP = {0: (0, 0), 16: (3, 1), 24: (8, 1), 32: (5, 2), 40: (12, 4), 48: (8, 3)}
KV_HEADS = {0: (0, 0), 1: (2, 2), 2: (4, 3), 3: (5, 5)}


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


def written(path: Path, checkpoint: Path, **changes: object) -> Path:
    """A file with the table of `MLP` and `KV_HEADS`, for the model in a folder; `changes` are
    arguments of `table`.
    """
    fingerprint = Checkpoint(checkpoint).fingerprint()
    given = {"kv_heads": KV_HEADS, "mlp_channels": MLP, "fingerprint": fingerprint} | changes
    table(**given).save(path)  # type: ignore[arg-type]
    return path
