"""What is said while no evaluator comes, and when the wait for one is over."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence

import ray

from workers.cluster.machine import Node
from workers.cluster.placement import Placement
from workers.cluster.resources import describe_cluster, describe_free
from workers.pool.faults import WorkersLost
from workers.pool.ray_worker import Worker

log = logging.getLogger(__name__)

_BUSY_S = 30.0
"""After so long without any evaluator, it is said that others use what they need."""


class StallWatch:
    """Watches whether a pool has an evaluator, or gets one in time."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._usable_since = time.monotonic()
        self._shortfall: str | None = None
        self._told_busy = False

    def look_at(self, nodes: Sequence[Node]) -> None:
        """Warns at once if no evaluator fits on any node; again when nodes have come or gone."""
        shortfall = self.placement.shortfall(nodes)
        if shortfall is not None and shortfall != self._shortfall:
            log.warning(
                "cluster: no node can take an evaluator: %s. Waiting for up to %.0f s "
                "(cluster.stall_timeout_s)",
                shortfall,
                self.placement.stall_timeout_s,
            )
        self._shortfall = shortfall

    def check(self, workers: Sequence[Worker]) -> None:
        """Somebody must be ready or at work, or at least come in time.

        Raises:
            WorkersLost: nobody has for as long as `placement.stall_timeout_s`.
        """
        now, limit_s = time.monotonic(), self.placement.stall_timeout_s
        if any(worker.info for worker in workers):
            self._usable_since, self._told_busy = now, False
            return
        stalled_s = now - self._usable_since
        if stalled_s > _BUSY_S and not self._told_busy and self._shortfall is None:
            self._tell_if_busy()
        if stalled_s <= limit_s:
            return
        states = Counter(worker.state for worker in workers)
        doing = ", ".join(f"{count} {state}" for state, count in states.items())
        raise WorkersLost(
            f"cluster: no evaluator for {limit_s:.0f} s (cluster.stall_timeout_s): "
            f"{doing or 'none could be placed'}. Each asks for {self.placement.describe()}; the "
            f"cluster has {describe_cluster()}. Ask for less (cluster.num_gpus_per_evaluator, "
            "cluster.num_cpus_per_evaluator), add nodes, or wait longer"
        )

    def _tell_if_busy(self) -> None:
        """Nodes are large enough, but not free: Ray does not say whether others have what is used,
        or evaluators whose processes are still starting.
        """
        if self.placement.fits_into(ray.available_resources()):
            return
        self._told_busy = True
        log.warning(
            "cluster: no evaluator yet: each asks for %s, of %s there are %s free; others use the "
            "rest, or evaluators are slow to start. Waiting for up to %.0f s "
            "(cluster.stall_timeout_s)",
            self.placement.describe(),
            describe_cluster(),
            describe_free(),
            self.placement.stall_timeout_s,
        )
