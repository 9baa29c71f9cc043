"""How busy the driver's machine and the evaluators on it are, under the names that MLflow shows on
a run's page of system metrics.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psutil

from pipelines.prune.observers import SearchObserver, SearchTracking
from pipelines.tracking.tracker import Tracker
from workers.pool.protocol import Pool

log = logging.getLogger(__name__)

EVERY_S = 10.0
_MACHINE = "system/"
"""What MLflow looks for."""


class SystemMetrics(SearchObserver):
    """Sends a sample every ten seconds: of the machine what MLflow's own monitors measure, and of
    the driver and each evaluator on the same machine the memory and the share of a core.

    Args:
        begun: seconds since 1970; steps in MLflow are seconds since then.
        clock: seconds, from wherever.
    """

    def __init__(
        self, tracker: Tracker, begun: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tracker, self.begun, self._clock = tracker, begun, clock
        self._next = -math.inf
        self._monitors: list[Any] | None = None
        self._processes: dict[int, psutil.Process] = {}

    def waiting(self, pool: Pool) -> None:
        self._sample(pool)

    def scored(
        self, pool: Pool, evaluations: Mapping[str, int], candidates: float, *, scored: bool
    ) -> None:
        self._sample(pool)

    def _sample(self, pool: Pool) -> None:
        clock, now = self._clock(), time.time()
        if clock < self._next:
            return
        self._next = clock + EVERY_S
        values = self._of_machine() | self._of_processes(pool)
        self.tracker.log_metrics(
            {f"{_MACHINE}{name}": value for name, value in values.items()},
            step=round(now - self.begun),
            timestamp=now,
        )

    def _of_machine(self) -> dict[str, float]:
        if self._monitors is None:
            self._monitors = _monitors()
        found: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                found |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            except Exception as error:  # noqa: BLE001 - no reason to end a search
                log.warning("system metrics without %s: %s", type(monitor).__name__, error)
                self._monitors.remove(monitor)
        return found

    def _of_processes(self, pool: Pool) -> dict[str, float]:
        host = socket.gethostname()
        pids = {"driver": os.getpid()} | {
            f"evaluator_{state.number}": state.info.pid
            for state in pool.states()
            if state.info is not None and state.info.node.split()[0] == host
        }
        found = {}
        for name, pid in pids.items():
            with suppress(psutil.Error):  # it has just ended
                process = self._processes.setdefault(pid, psutil.Process(pid))
                found[f"{name}_memory_usage_megabytes"] = process.memory_info().rss / 1e6
                found[f"{name}_cpu_utilization_percentage"] = process.cpu_percent()
        return found


def system_metrics(tracking: SearchTracking) -> list[SystemMetrics]:
    """The observer, where it is asked for."""
    wanted = tracking.job.config.tracking.system_metrics
    return [SystemMetrics(tracking.tracker, tracking.begun)] if wanted else []


def _monitors() -> list[Any]:
    """MLflow's, as its own thread makes them; that of GPUs where there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except Exception as error:  # noqa: BLE001 - whatever its library says
        log.info("system metrics without GPUs: %s", error)
    return found
