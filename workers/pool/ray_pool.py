"""Tasks over Ray actors: one task in flight per evaluator, lost work goes to another one, results
in the order in which they come.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import ray
import torch
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from pruning.errors import InputError, ScoringError
from pruning.importance.channel_order import ChannelOrder
from workers.cluster.placement import Placement
from workers.cluster.ray_session import describe_cluster, nodes
from workers.evaluators.shapes import Evaluator
from workers.pool.actor import ActorLauncher, Reply
from workers.pool.faults import (
    Decision,
    Failure,
    Fault,
    FaultKind,
    FaultLog,
    FaultPolicy,
    WorkersLost,
)
from workers.pool.protocol import Answer, EvaluatorKind, EvaluatorState, Spec, State
from workers.pool.ray_faults import first_line, last_line, listens, lost_its_node
from workers.pool.schedule import PrefixKey, Running, Schedule
from workers.pool.task_times import TaskTimeModel
from workers.tasks import EvaluatorInfo, ScoreResult, ScoreTask, Task

log = logging.getLogger(__name__)

_POLL_S = 1.0
_FILL_S = 5.0
"""How often the cluster is asked whether it has grown."""

_HUNG_TIMES, _HUNG_AT_LEAST_S = 30.0, 60.0
"""An evaluator that needs so many times as long as expected, and at least so long, hangs."""


@dataclass(eq=False)
class _Worker:
    """One actor. `ready` is the Ray reference that it will answer next; `running` its task, of a
    run that may be over.
    """

    number: int
    actor: Any
    ready: Any
    state: State = "waiting for resources"
    since: float = field(default_factory=time.monotonic)
    info: EvaluatorInfo | None = None
    started: Any = None
    ordered: bool = False
    schedule: Schedule | None = None
    running: Running | None = None
    held: PrefixKey | None = None
    num_tasks: int = 0
    busy_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"evaluator {self.number} on {self.info}" if self.info else f"evaluator {self.number}"
        )


class RayPool:
    """Evaluators as Ray actors.

    Args:
        spec: what each evaluator loads.
        placement: how many evaluators, and what each of them gets.
        policy: what to do about failures.
        task_timeout_s: a task that takes longer is taken from its evaluator, which is replaced;
            hung processes are reported by nobody else.
        kind: the class of the evaluators.
        launcher: makes and ends the actors.

    Use as a context manager: actors are gone when it closes, also after an error. One thread uses
    it.
    """

    def __init__(
        self,
        spec: Spec,
        placement: Placement,
        *,
        policy: FaultPolicy | None = None,
        task_timeout_s: float = 3600.0,
        kind: EvaluatorKind = Evaluator,
        launcher: ActorLauncher | None = None,
    ) -> None:
        self.kind = kind
        self.launcher = launcher or ActorLauncher()
        self.placement = placement
        self.policy = policy or FaultPolicy()
        self.task_timeout_s = task_timeout_s
        self.task_times = TaskTimeModel(spec.checkpoint.config().num_hidden_layers)
        self.faults = FaultLog()
        self._spec_ref = ray.put(spec)
        self._order: ChannelOrder | None = None
        self._order_ref: Any = None
        self._failed_starts = 0
        self._num_started = 0
        self._next_fill = 0.0
        self._back_off_until = 0.0
        self._usable_since = time.monotonic()
        self._device: str | None = None
        self._workers: list[_Worker] = []
        self._fill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_evaluators(self) -> int:
        return sum(worker.info is not None for worker in self._workers)

    def set_order(self, order: ChannelOrder) -> None:
        self._order = order
        self._order_ref = ray.put(order)
        for worker in self._workers:
            worker.ordered = False

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        """See `Pool.run`.

        Raises:
            WorkersLost: a candidate failed as often as the policy allows, or there is no evaluator
                for as long as `placement.stall_timeout_s`.
            InputError, ScoringError: what an evaluator found wrong with the input.
        """
        schedule = Schedule(tasks, self.task_times)
        self._hand_out(schedule)
        while not schedule.finished:
            answers = self._collect(schedule)
            self._fill()
            self._hand_out(
                schedule
            )  # before the caller deals with the answers: evaluators do not wait for its disk
            yield answers

    def wait(self) -> Iterator[None]:
        while not self.num_evaluators:
            self._collect(None)
            self._fill()
            yield

    @property
    def device(self) -> str:
        assert self._device is not None, "no evaluator has started yet"
        return self._device

    def describe(self) -> list[EvaluatorInfo]:
        """Waits until every evaluator has started."""
        while not self._workers or any(worker.info is None for worker in self._workers):
            self._collect(None)
            self._fill()
        return [worker.info for worker in self._workers if worker.info]

    def states(self) -> list[EvaluatorState]:
        return [
            EvaluatorState(
                worker.number,
                worker.state,
                worker.info,
                str(worker.running.task) if worker.running else "",
                worker.num_tasks,
                worker.busy_s,
            )
            for worker in self._workers
        ]

    def close(self) -> None:
        for worker in self._workers:
            self.launcher.kill(worker.actor)
        self._workers.clear()

    def _fill(self) -> None:
        """Asks for evaluators until there are as many as wanted.

        Ray starts them as resources appear.
        """
        now = time.monotonic()
        if now < max(self._next_fill, self._back_off_until):
            return
        self._next_fill = now + _FILL_S
        wanted = self.placement.wanted(nodes())
        for worker in [
            worker for worker in self._workers if worker.state == "waiting for resources"
        ][: max(0, len(self._workers) - wanted)]:
            self._drop(worker)  # asked for on a node that has gone
        for _ in range(wanted - len(self._workers)):
            actor = self.launcher.launch(self.placement)
            worker = _Worker(
                self._num_started,
                actor,
                actor.__ray_ready__.remote(),
                ordered=self._order is not None,
            )
            worker.started = actor.start.remote(self.kind, self._spec_ref, self._order_ref)
            self._workers.append(worker)
            self._num_started += 1

    def _hand_out(self, schedule: Schedule) -> None:
        num_evaluators, exhausted = self.num_evaluators, False
        for worker in sorted(
            (worker for worker in self._workers if worker.state == "ready"),
            key=lambda worker: self.task_times.straggler_factor(worker.number),
        ):
            if exhausted and not schedule.continues(worker.held):
                continue
            now = time.monotonic()
            running = schedule.next(worker.number, num_evaluators, worker.held, now)
            if running is None:
                exhausted = True  # what a faster one should not do, a slower one should not either
                continue
            if len(running.holders) > 1:
                self.faults.num_speculative_tasks += 1
                log.debug("%s copies a late task: %s", worker, running.task)
            if self._order is not None and not worker.ordered:
                worker.actor.set_order.remote(
                    self._order_ref
                )  # an actor works in order; a failure shows in the task behind it
                worker.ordered = True
            worker.schedule, worker.running = schedule, running
            worker.ready = worker.actor.run.remote(running.task)
            worker.state, worker.since = "working", now

    def _collect(self, schedule: Schedule | None) -> list[Answer]:
        """Waits a moment; returns what was answered.

        Whatever else happened to evaluators is dealt with on the way.
        """
        waiting = {worker.ready: worker for worker in self._workers if worker.state != "ready"}
        done: list[Any] = []
        if waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
            if done and len(waiting) > 1:  # whatever else is there by now comes with it
                done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        else:
            time.sleep(_POLL_S)
        answers: list[Answer] = []
        for reference in done:
            worker = waiting[reference]
            try:
                reply = ray.get(reference)
            except RayError as error:
                self._failed(worker, error, schedule)
                continue
            answers += self._advance(worker, reply, schedule)
        for reference in waiting.keys() - set(done):
            self._check_time(waiting[reference], schedule)
        self._check_stall()
        return answers

    def _advance(self, worker: _Worker, reply: Any, schedule: Schedule | None) -> list[Answer]:
        """An evaluator has done what it was doing."""
        now = time.monotonic()
        if worker.state == "waiting for resources":
            worker.state, worker.ready, worker.since = "loading", worker.started, now
            return []
        if worker.state == "loading":
            self._started(worker, reply.value, now - worker.since)
            _relay(worker, reply)
            return []
        _relay(worker, reply)
        running = worker.running
        assert running is not None
        assert worker.schedule is not None
        worker.num_tasks += 1
        worker.busy_s += now - worker.since
        worker.held = running.task.prefix_key if isinstance(running.task, ScoreTask) else None
        first = worker.schedule.done(worker.number, running, reply.value)
        current = worker.schedule is schedule
        worker.state, worker.running, worker.schedule = "ready", None, None
        self.faults.num_oom_splits += isinstance(reply.value, ScoreResult) and reply.value.oom_split
        return [(running.task, reply.value)] if first and current else []

    def _started(self, worker: _Worker, info: EvaluatorInfo, seconds: float) -> None:
        driver_version = torch.__version__.split("+")[0]
        if info.torch_version != driver_version:
            self._start_failed(
                worker,
                InputError(
                    f"torch {info.torch_version} on {info.node}, {driver_version} here: install "
                    "the same on every node"
                ),
            )
            return
        worker.info, worker.state = info, "ready"
        self._failed_starts, self._back_off_until = 0, 0.0
        log.info("%s: ready after %.1f s", worker, seconds)
        if self._device is None:
            self._device = info.device
        elif info.device != self._device:
            log.warning(
                "%s is another kind of device than %s: the last digits of scores depend on who "
                "computes them",
                worker,
                self._device,
            )

    def _check_time(self, worker: _Worker, schedule: Schedule | None) -> None:
        seconds = time.monotonic() - worker.since
        if worker.state == "loading" and seconds > self.placement.start_timeout_s:
            self._start_failed(
                worker,
                TimeoutError(
                    f"not loaded within {self.placement.start_timeout_s:.0f} s "
                    "(cluster.start_timeout_s)"
                ),
            )
        elif worker.state == "working":
            limit = self._time_limit(worker)
            if seconds > limit:
                self._task_failed(
                    worker, "late", f"no answer within {limit:.0f} s", TimeoutError(), schedule
                )

    def _time_limit(self, worker: _Worker) -> float:
        if (
            worker.schedule is None
            or worker.running is None
            or not self.task_times.knows(worker.running.task)
        ):
            return self.task_timeout_s
        return min(
            self.task_timeout_s,
            max(
                _HUNG_AT_LEAST_S,
                _HUNG_TIMES * worker.schedule.expected_s(worker.number, worker.running),
            ),
        )

    def _check_stall(self) -> None:
        """Somebody must be ready or at work, or at least come in time."""
        now = time.monotonic()
        if self.num_evaluators:
            self._usable_since = now
        elif now - self._usable_since > self.placement.stall_timeout_s:
            states = Counter(worker.state for worker in self._workers)
            doing = (
                ", ".join(f"{count} {state}" for state, count in states.items())
                or "none could be placed"
            )
            raise WorkersLost(
                f"cluster: no evaluator for {self.placement.stall_timeout_s:.0f} s "
                f"(cluster.stall_timeout_s): {doing}. Each asks for "
                f"{self.placement.describe()}; the cluster has {describe_cluster()}. Ask for "
                "less (cluster.num_gpus_per_evaluator, "
                "cluster.num_cpus_per_evaluator), add nodes, or wait longer"
            )

    def _failed(self, worker: _Worker, error: RayError, schedule: Schedule | None) -> None:
        """Ray reports an exception instead of an answer."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if worker.state != "working":
            if lost_its_node(error):
                log.info(
                    "%s: its node went before it had started (%s); another one takes its place",
                    worker,
                    first_line(cause),
                )
                self._replace(worker)
            else:
                self._start_failed(worker, cause)
            return
        if isinstance(cause, (InputError, ScoringError)):
            current = worker.schedule is schedule
            worker.state, worker.running, worker.schedule = (
                "ready",
                None,
                None,
            )  # it is well: another search may go on with it
            if current:
                raise cause from error
            return
        if isinstance(error, RayTaskError) and not isinstance(cause, OutOfMemoryError):
            kind: FaultKind = "task error"
        elif isinstance(cause, OutOfMemoryError):
            kind = "out of memory"
        else:
            kind = "node lost" if self._node_is_gone(worker, error) else "evaluator lost"
        self._task_failed(worker, kind, first_line(cause), error, schedule)

    def _task_failed(
        self,
        worker: _Worker,
        kind: FaultKind,
        cause: str,
        error: Exception,
        schedule: Schedule | None,
    ) -> None:
        running, count = worker.running, 0
        assert running is not None
        assert worker.schedule is not None
        if worker.schedule is schedule:
            alone = len(running.holders) == 1
            count = worker.schedule.failed(
                worker.number,
                running,
                blame=self.policy.blames_task(kind),
                error=kind == "task error",
            )
            self.faults.num_lost_evaluations += running.task.num_evaluations if alone else 0
        decision = self._decide(
            worker, Failure(kind, count, cause, others_ready=self.num_evaluators > 1)
        )
        if decision is Decision.ABORT:
            advice = (
                "; give evaluators more memory or start fewer (cluster.num_evaluators)"
                if kind == "out of memory"
                else ""
            )
            raise WorkersLost(
                f"a task failed {count} times on different evaluators ({running.task}); the last "
                f"time: {kind}: {cause}{advice}"
            ) from error
        self._replace(worker)

    def _start_failed(self, worker: _Worker, error: Exception) -> None:
        """Before anything has ever started, an error in the input is the user's to mend at once."""
        if isinstance(error, InputError) and self._device is None:
            raise error
        cause = last_line(error)
        self._failed_starts += 1
        decision = self._decide(
            worker,
            Failure(
                "start failed", self._failed_starts, cause, others_ready=self.num_evaluators > 0
            ),
        )
        if decision is Decision.ABORT:
            raise WorkersLost(
                f"{self._failed_starts} evaluators in a row failed to start; the last one: {cause}"
            ) from error
        self._replace(worker)
        if decision is Decision.BACK_OFF:
            self._back_off_until = time.monotonic() + self.policy.back_off_s(self._failed_starts)

    def _decide(self, worker: _Worker, failure: Failure) -> Decision:
        decision = self.policy.decide(failure)
        self.faults.add(
            Fault(time.time(), failure.kind, str(worker), failure.cause, decision.value)
        )
        log.warning("%s: %s (%s); %s", str(worker), failure.kind, failure.cause, decision.value)
        return decision

    def _node_is_gone(self, worker: _Worker, error: Exception) -> bool:
        """Ray declares a node dead after 15 s of silence at the earliest.

        Until then what ran there is unavailable, and its raylet cannot be reached.
        """
        node_id = worker.info.node_id if worker.info else ""
        [node] = [node for node in ray.nodes() if node["NodeID"] == node_id and node["Alive"]] or [
            None
        ]
        if node is None or "node has died" in str(error):
            return True
        return isinstance(error, ActorUnavailableError) and not listens(
            node["NodeManagerAddress"], node["NodeManagerPort"]
        )

    def _replace(self, worker: _Worker) -> None:
        self._drop(worker)
        self._next_fill = 0.0

    def _drop(self, worker: _Worker) -> None:
        self.launcher.kill(worker.actor)
        self._workers.remove(worker)


def _relay(worker: _Worker, reply: Reply) -> None:
    """What an evaluator logged, in our log."""
    for level, message in reply.records:
        log.log(level, "%s: %s", str(worker), message)
