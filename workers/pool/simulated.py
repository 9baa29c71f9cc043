"""Evaluators that wait instead of computing, many to a process: to measure the pool and Ray at
sizes that this machine does not have.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from pruning.importance.channel_order import ChannelOrder
from pruning.scoring.arithmetic import Arithmetic
from workers.cluster.placement import Placement
from workers.pool.actor import ActorLauncher, Reply
from workers.pool.task_times import work
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import EvaluatorInfo, Result, ScoreResult, ScoreTask, Task


@dataclass(frozen=True, slots=True)
class Pace:
    """What a simulated evaluator takes for a layer, and for the head and loss, of one batch."""

    layer_s: float
    head_s: float


class SimulatedEvaluator:
    """Takes as long as an evaluator would.

    Its scores are made up, but the same shape and batch always have the same.

    Args:
        pace: seconds of a layer and of a head.
    """

    def __init__(self, number: int, num_layers: int, pace: Pace) -> None:
        self.number, self.num_layers, self.pace = number, num_layers, pace
        self.busy_s = 0.0
        self._held: PrefixKey | None = None
        self._dense_batch: int | None = None

    def describe(self) -> EvaluatorInfo:
        arithmetic = Arithmetic(device="simulated", num_threads=1, torch=torch.__version__)
        return EvaluatorInfo(os.getpid(), socket.gethostname(), (), arithmetic)

    def set_order(self, order: ChannelOrder) -> None:
        """Nothing to sort."""

    def run(self, task: Task) -> Result:
        assert isinstance(task, ScoreTask)
        started = time.perf_counter()
        num_run = missing_layers(task.prefix_key, self._held, self.num_layers)
        self._held = task.prefix_key
        layers, heads = work(task, self.num_layers)
        layers += num_run
        if task.kind == "kl" and task.batch != self._dense_batch:
            self._dense_batch = task.batch  # what the dense model says of it is kept
            layers, heads = layers + self.num_layers, heads + 1
        time.sleep(layers * self.pace.layer_s + heads * self.pace.head_s)
        seconds = time.perf_counter() - started
        self.busy_s += seconds
        nll = tuple(
            (1 + zlib.crc32(f"{task.base} {task.batch} {candidate}".encode()) / 2**32,)
            for candidate in task.candidates
        )
        return ScoreResult(nll, 1, seconds, num_run)


class _Host:
    """A process full of simulated evaluators, a thread each."""

    def __init__(self, num_layers: int, pace: Pace) -> None:
        self._evaluators: dict[int, SimulatedEvaluator] = {}
        self._lock = threading.Lock()
        self._num_layers, self._pace = num_layers, pace

    def start(self, number: int) -> Reply:
        with self._lock:
            self._evaluators[number] = SimulatedEvaluator(number, self._num_layers, self._pace)
        return Reply(self._evaluators[number].describe())

    def run(self, number: int, task: Task) -> Reply:
        return Reply(self._evaluators[number].run(task))

    def ready(self) -> None:
        """Answers when the process is there."""

    def busy_s(self) -> Mapping[int, float]:
        return {number: evaluator.busy_s for number, evaluator in self._evaluators.items()}


@dataclass(frozen=True, slots=True)
class _Method:
    """Looks like a method of an actor handle to the pool."""

    call: Any
    arguments: tuple[Any, ...]
    takes: int

    def remote(self, *arguments: Any) -> Any:
        return self.call.remote(*self.arguments, *arguments[: self.takes])


class _Handle:
    """One evaluator of a host, with the methods that the pool calls."""

    def __init__(self, host: Any, number: int) -> None:
        self.__ray_ready__ = _Method(host.ready, (), 0)
        self.start = _Method(host.start, (number,), 0)
        self.run = _Method(host.run, (number,), 1)


class SimulatedLauncher(ActorLauncher):
    """Hands out places in a few host processes.

    Args:
        num_hosts: processes.
        per_host: evaluators in each.
    """

    def __init__(self, num_layers: int, pace: Pace, *, num_hosts: int, per_host: int) -> None:
        host_class: Any = ray.remote(_Host)
        options = {"num_cpus": 0, "max_concurrency": per_host}
        self._hosts = [
            host_class.options(**options).remote(num_layers, pace) for _ in range(num_hosts)
        ]
        self._num_launched = 0

    def launch(self, placement: Placement, name: str) -> Any:
        number, self._num_launched = self._num_launched, self._num_launched + 1
        return _Handle(self._hosts[number % len(self._hosts)], number)

    def kill(self, actor: Any) -> None:
        """Others live in the same process."""

    def busy_s(self) -> float:
        """Seconds that all evaluators have been at work, by their own clocks."""
        return sum(
            sum(seconds.values())
            for seconds in ray.get([host.busy_s.remote() for host in self._hosts])
        )

    def close(self) -> None:
        for host in self._hosts:
            ray.kill(host)
