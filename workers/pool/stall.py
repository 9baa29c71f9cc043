"""When the wait for an evaluator is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from workers.cluster.placement import Placement
from workers.cluster.resources import describe_cluster
from workers.pool.faults import WorkersLost
from workers.pool.ray_worker import Worker


class StallWatch:
    """Watches whether a pool has an evaluator, or gets one in time."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._usable_since = time.monotonic()

    def check(self, workers: Sequence[Worker]) -> None:
        """Somebody must be ready or at work, or at least come in time.

        Raises:
            WorkersLost: nobody has for as long as `placement.stall_timeout_s`.
        """
        now, limit_s = time.monotonic(), self.placement.stall_timeout_s
        if any(worker.info for worker in workers):
            self._usable_since = now
        if now - self._usable_since <= limit_s:
            return
        states = Counter(worker.state for worker in workers)
        doing = ", ".join(f"{count} {state}" for state, count in states.items())
        raise WorkersLost(
            f"cluster: no evaluator for {limit_s:.0f} s (cluster.stall_timeout_s): "
            f"{doing or 'none could be placed'}. Each asks for {self.placement.describe()}; the "
            f"cluster has {describe_cluster()}. Ask for less (cluster.num_gpus_per_evaluator, "
            "cluster.num_cpus_per_evaluator), add nodes, or wait longer"
        )
