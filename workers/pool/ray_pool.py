"""Tasks over Ray actors: one task in flight per evaluator, lost work goes to another one, results
in the order in which they come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import ray
import torch
from ray.exceptions import RayError

from pruning.errors import InputError, ScoringError
from pruning.importance.channel_order import ChannelOrder
from pruning.scoring.arithmetic import Arithmetic
from workers.cluster.placement import Placement
from workers.cluster.resources import nodes
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
from workers.pool.protocol import Answer, EvaluatorKind, EvaluatorState, Spec
from workers.pool.ray_faults import (
    cause_of,
    fault_kind,
    first_line,
    last_line,
    lost_its_node,
    replies,
)
from workers.pool.ray_worker import Worker
from workers.pool.schedule import Schedule
from workers.pool.stall import StallWatch
from workers.pool.task_times import TaskTimeModel, slowest_text_s
from workers.tasks import EvaluatorInfo, EvaluatorSpec, ScoreResult, Task

log = logging.getLogger(__name__)

_POLL_S = 1.0
_FILL_S = 5.0
"""How often the cluster is asked whether it has grown."""


class RayPool:
    """Evaluators as Ray actors.

    Args:
        spec: what each evaluator loads.
        placement: how many evaluators, and what each of them gets.
        policy: what to do about failures.
        task_timeout_s: a task that takes longer, and longer than a slow device takes for the text
            that it reads, is taken from its evaluator, which is replaced;
            hung processes are reported by nobody else. As far as it is known what a task should
            take, it is taken away earlier.
        kind: the class of the evaluators.
        launcher: makes and ends the actors.
        name: what the actors are called after in Ray's dashboard.

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
        name: str = "",
    ) -> None:
        self._prefix = f"{name}/" if name else ""
        self.kind = kind
        self.launcher = launcher or ActorLauncher()
        self.task_timeout_s = task_timeout_s
        self.placement = placement
        self.policy = policy or FaultPolicy()
        self.task_times = TaskTimeModel(
            spec.checkpoint.config().num_hidden_layers,
            slowest_text_s=slowest_text_s(spec, placement)
            if isinstance(spec, EvaluatorSpec)
            else 0.0,
        )
        self.faults = FaultLog()
        self._spec_ref = ray.put(spec)
        self._order: ChannelOrder | None = None
        self._order_ref: Any = None
        self._failed_starts = 0
        self._num_started = 0
        self._next_fill = self._next_check = 0.0
        self._back_off_until = 0.0
        self._stall = StallWatch(placement)
        self._arithmetic: Arithmetic | None = None
        self._workers: list[Worker] = []
        self._schedule: Schedule | None = None  # of the run that goes on
        self._fill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_evaluators(self) -> int:
        return sum(worker.info is not None for worker in self._workers)

    @property
    def arithmetic(self) -> Arithmetic:
        assert self._arithmetic is not None, "no evaluator has started yet"
        return self._arithmetic

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
        schedule = self._schedule = Schedule(tasks, self.task_times)
        try:
            self._hand_out(schedule)
            while not schedule.finished:
                answers = self._collect()
                self._fill()
                # before the caller deals with the answers: evaluators do not wait for its disk
                self._hand_out(schedule)
                yield answers
        finally:
            if self._schedule is schedule:
                self._schedule = None

    def wait(self) -> Iterator[None]:
        while not self.num_evaluators:
            self._collect()
            self._fill()
            yield

    def describe(self) -> list[EvaluatorInfo]:
        """Waits until every evaluator has started."""
        while not self._workers or any(worker.info is None for worker in self._workers):
            self._collect()
            self._fill()
        return [worker.info for worker in self._workers if worker.info]

    def states(self) -> list[EvaluatorState]:
        return [worker.describe() for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            self.launcher.kill(worker.actor)
        self._workers.clear()

    # Evaluators come and go.

    def _fill(self) -> None:
        """Asks for evaluators until there are as many as wanted.

        Ray starts them as resources appear.
        """
        now = time.monotonic()
        if now < max(self._next_fill, self._back_off_until):
            return
        self._next_fill = now + _FILL_S
        found = nodes()
        self._stall.look_at(found)
        wanted = self.placement.wanted(found)
        waiting = [worker for worker in self._workers if worker.state == "waiting for resources"]
        for worker in waiting[: max(0, len(self._workers) - wanted)]:
            self._drop(worker)  # asked for on a node that has gone
        for _ in range(wanted - len(self._workers)):
            self._launch()

    def _launch(self) -> None:
        name = f"{self._prefix}evaluator-{self._num_started}"
        actor = self.launcher.launch(self.placement, name)
        worker = Worker(
            self._num_started,
            actor,
            ready=actor.__ray_ready__.remote(),
            started=actor.start.remote(self.kind, self._spec_ref, self._order_ref),
            ordered=self._order is not None,
        )
        self._workers.append(worker)
        self._num_started += 1

    def _drop(self, worker: Worker) -> None:
        self.launcher.kill(worker.actor)
        self._workers.remove(worker)

    def _replace(self, worker: Worker) -> None:
        self._drop(worker)
        self._next_fill = 0.0

    def _started(self, worker: Worker, info: EvaluatorInfo, seconds: float) -> None:
        # without its build, which differs between CPU and GPU
        version, driver_version = (
            each.split("+")[0] for each in (info.arithmetic.torch, torch.__version__)
        )
        if version != driver_version:
            error = f"torch {version} on {info.node}, {driver_version} here: install "
            self._start_failed(worker, InputError(f"{error}the same on every node"))
            return
        worker.rest(info)
        self.task_times.observe_start(seconds)
        self._failed_starts, self._back_off_until = 0, 0.0
        log.info("%s: ready after %.1f s", worker, seconds)
        if self._arithmetic is None:
            self._arithmetic = info.arithmetic
        elif info.arithmetic != self._arithmetic:
            log.warning(
                "%s computes otherwise than the first evaluator (%s): the last digits of scores "
                "depend on who computes them",
                worker,
                "; ".join(info.arithmetic.differences(self._arithmetic)),
            )

    def _start_failed(self, worker: Worker, error: Exception) -> None:
        """Before anything has ever started, invalid input is reported at once, to be fixed."""
        if isinstance(error, InputError) and self._arithmetic is None:
            raise error
        cause, others_ready = last_line(error), self.num_evaluators > 0
        self._failed_starts += 1
        decision = self._decide(
            worker, Failure("start failed", self._failed_starts, cause, others_ready)
        )
        if decision is Decision.ABORT:
            raise WorkersLost(
                f"{self._failed_starts} evaluators in a row failed to start; the last one: {cause}"
            ) from error
        self._replace(worker)
        if decision is Decision.BACK_OFF:
            self._back_off_until = time.monotonic() + self.policy.back_off_s(self._failed_starts)

    # Work goes out, answers come in.

    def _hand_out(self, schedule: Schedule) -> None:
        """Gives work to whoever is ready, the fastest first."""
        num_evaluators, exhausted = self.num_evaluators, False
        ready = [worker for worker in self._workers if worker.state == "ready"]
        for worker in sorted(
            ready, key=lambda worker: self.task_times.straggler_factor(worker.number)
        ):
            if exhausted and not schedule.continues(worker.held):
                continue
            now = time.monotonic()
            running = schedule.next(worker.number, num_evaluators, worker.held, now)
            if running is None:
                exhausted = True  # what a faster one should not do, a slower one should not either
                if schedule.handed_out:
                    break
                continue
            if len(running.holders) > 1:
                self.faults.num_speculative_tasks += 1
                log.debug("%s runs a late task a second time: %s", worker, running.task)
            if self._order is not None and not worker.ordered:
                # an actor works in order; a failure shows in the task behind it
                worker.actor.set_order.remote(self._order_ref)
                worker.ordered = True
            worker.work(schedule, running, now)

    def _collect(self) -> list[Answer]:
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
        for reference, reply in zip(done, replies(done), strict=True):
            worker = waiting[reference]
            if isinstance(reply, RayError):
                self._failed(worker, reply)
            else:
                answers += self._advance(worker, reply)
        if time.monotonic() >= self._next_check:  # not with each answer: there may be hundreds
            self._next_check = time.monotonic() + _POLL_S
            for reference in waiting.keys() - set(done):
                self._check_time(waiting[reference])
        self._stall.check(self._workers)
        return answers

    def _advance(self, worker: Worker, reply: Any) -> list[Answer]:
        """An evaluator has done what it was doing."""
        now = time.monotonic()
        if worker.state == "waiting for resources":
            worker.load(now)
            return []
        if worker.state == "loading":
            self._started(worker, reply.value, now - worker.since)
            _relay(worker, reply)
            return []
        _relay(worker, reply)
        schedule, running = worker.task
        first = schedule.done(worker.number, running, reply.value, now)
        worker.answered(now)
        self.faults.num_oom_splits += isinstance(reply.value, ScoreResult) and reply.value.oom_split
        return [(running.task, reply.value)] if first and schedule is self._schedule else []

    # Something goes wrong.

    def _check_time(self, worker: Worker) -> None:
        """Whether an evaluator hangs."""
        seconds, start_s = time.monotonic() - worker.since, self.placement.start_timeout_s
        if worker.state == "loading" and seconds > start_s:
            cause = f"not loaded within {start_s:.0f} s (cluster.start_timeout_s)"
            self._start_failed(worker, TimeoutError(cause))
        elif worker.state == "working":
            schedule, running = worker.task
            most_s = max(self.task_timeout_s, self.task_times.slowest_s(running.task))
            limit_s = min(most_s, schedule.limit_s(worker.number, running))
            if seconds > limit_s:
                cause = f"no answer within {limit_s:.0f} s"
                if limit_s == self.task_timeout_s:
                    cause += " (cluster.task_timeout_s)"
                self._task_failed(worker, "late", cause, TimeoutError())

    def _failed(self, worker: Worker, error: RayError) -> None:
        """Ray reports an exception instead of an answer."""
        cause = cause_of(error)
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
        elif isinstance(cause, (InputError, ScoringError)):
            current = worker.schedule is self._schedule
            worker.rest()  # it is well: another search may go on with it
            if current:
                raise cause from error
        else:
            kind = fault_kind(error, worker.info.node_id if worker.info else "")
            self._task_failed(worker, kind, first_line(cause), error)

    def _task_failed(self, worker: Worker, kind: FaultKind, cause: str, error: Exception) -> None:
        """The task goes to another evaluator, another evaluator takes the place of this one."""
        (schedule, running), count = worker.task, 0
        if schedule is self._schedule:
            alone = len(running.holders) == 1
            count = schedule.failed(
                worker.number,
                running,
                blame=self.policy.blames_task(kind),
                error=kind == "task error",
            )
            self.faults.num_lost_evaluations += running.task.num_evaluations if alone else 0
        decision = self._decide(worker, Failure(kind, count, cause, self.num_evaluators > 1))
        if decision is Decision.ABORT:
            advice = ""
            if kind == "out of memory":
                advice = "; give evaluators more memory or start fewer (cluster.num_evaluators)"
            raise WorkersLost(
                f"a task failed {count} times on different evaluators ({running.task}); the last "
                f"time: {kind}: {cause}{advice}"
            ) from error
        self._replace(worker)

    def _decide(self, worker: Worker, failure: Failure) -> Decision:
        decision = self.policy.decide(failure)
        self.faults.add(
            Fault(time.time(), failure.kind, str(worker), failure.cause, decision.value)
        )
        log.warning("%s: %s (%s); %s", str(worker), failure.kind, failure.cause, decision.value)
        return decision


def _relay(worker: Worker, reply: Reply) -> None:
    """What an evaluator logged, in our log."""
    for level, message in reply.records:
        log.log(level, "%s: %s", str(worker), message)
