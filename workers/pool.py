"""Tasks over Ray actors: one task in flight per evaluator, lost tasks go to another one, results in the order in which they come."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import ray
from ray.exceptions import RayError, RayTaskError

from pruning.errors import InputError, ScoringError
from pruning.importance import ChannelOrder
from workers.evaluator import Evaluator
from workers.faults import Decision, Failure, FaultPolicy, WorkersLost
from workers.placement import Placement, describe_cluster
from workers.tasks import EvaluatorInfo, EvaluatorSpec, Result, Task

log = logging.getLogger(__name__)

_POLL_S = 1.0


class Pool(Protocol):
    """Something that runs tasks. The driver knows no more than this."""

    @property
    def num_evaluators(self) -> int: ...

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Yields (index of the task, its result) as results come; every task exactly once."""

    def set_order(self, order: ChannelOrder) -> None:
        """Sorts the weights of every evaluator, of those that start later too."""

    def device(self) -> str:
        """Kind of device that scores: `cpu` or `cuda`. Waits for the first evaluator."""

    def describe(self) -> list[EvaluatorInfo]: ...

    def close(self) -> None: ...


class EvaluatorActor:
    """An evaluator in a process of its own. It is made by a call, not with the actor, so that what goes wrong comes back as the exception that it was."""

    def start(self, kind: type[Evaluator], spec: EvaluatorSpec, order: ChannelOrder | None) -> EvaluatorInfo:
        self.evaluator = kind(spec, order)
        return self.evaluator.describe()

    def run(self, task: Task) -> Result:
        return self.evaluator.run(task)

    def set_order(self, order: ChannelOrder) -> None:
        self.evaluator.set_order(order)

    def describe(self) -> EvaluatorInfo:
        return self.evaluator.describe()


@dataclass(eq=False)
class _Worker:
    """One actor: `starting` until its first answer, then it has a task or is idle."""

    number: int
    actor: Any
    ready: Any
    since: float = field(default_factory=time.monotonic)
    starting: bool = True
    ordered: bool = False
    task: int | None = None


class RayPool:
    """Evaluators as Ray actors.

    Args:
        spec: what each evaluator loads.
        placement: how many evaluators, and what each of them gets.
        policy: what to do about failures.
        task_timeout_s: a task that takes longer is taken from its evaluator, which is replaced; hung processes are reported by nobody else.
        kind: the class of the evaluators.

    Use as a context manager: actors are gone when it closes, also after an error.
    """

    def __init__(
        self,
        spec: EvaluatorSpec,
        placement: Placement,
        *,
        policy: FaultPolicy | None = None,
        task_timeout_s: float = 3600.0,
        kind: type[Evaluator] = Evaluator,
    ) -> None:
        self.spec = spec
        self.kind = kind
        self.placement = placement
        self.policy = policy or FaultPolicy()
        self.task_timeout_s = task_timeout_s
        self.num_lost = 0
        self._num_layers = spec.checkpoint.config().num_hidden_layers
        self._spec_ref = ray.put(spec)
        self._order: ChannelOrder | None = None
        self._order_ref: Any = None
        self._failed_starts = 0
        self._started = 0
        self._workers: list[_Worker] = []
        self._fill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_evaluators(self) -> int:
        return self.placement.num_evaluators

    def set_order(self, order: ChannelOrder) -> None:
        self._order = order
        self._order_ref = ray.put(order)
        for worker in self._workers:
            worker.ordered = False

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See `Pool.run`.

        Raises:
            WorkersLost: a task failed as often as the policy allows, or no evaluator starts.
            InputError, ScoringError: what an evaluator found wrong with the input.
        """
        waiting = deque(sorted(range(len(tasks)), key=lambda index: -tasks[index].cost(self._num_layers)))
        failures = [0] * len(tasks)
        remaining = len(tasks)
        self._fill()
        try:
            while remaining:
                self._hand_out(waiting, tasks)
                for worker, error, result in self._collect():
                    index, worker.task = worker.task, None
                    if error is None and index is not None:
                        remaining -= 1
                        yield index, result
                    elif error is not None and index is not None:
                        failures[index] += 1
                        self._recover(worker, tasks[index], failures[index], error)
                        waiting.appendleft(index)
        finally:
            # After an error, or when the caller stopped listening, what is still running belongs to nobody.
            for worker in [worker for worker in self._workers if worker.task is not None]:
                self._drop(worker)

    def device(self) -> str:
        while all(worker.starting for worker in self._workers):
            self._collect()
        ready = next(worker for worker in self._workers if not worker.starting)
        info: EvaluatorInfo = ray.get(ready.actor.describe.remote())
        return info.device

    def describe(self) -> list[EvaluatorInfo]:
        """Waits until every evaluator has started."""
        while any(worker.starting for worker in self._workers):
            for _ in self._collect():
                raise AssertionError("no task is in flight")
        infos: list[EvaluatorInfo] = ray.get([worker.actor.describe.remote() for worker in self._workers])
        return infos

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()

    def _fill(self) -> None:
        """Starts evaluators until there are as many as asked for. It does not wait for them."""
        for _ in range(self.placement.num_evaluators - len(self._workers)):
            self._start_worker()

    def _start_worker(self) -> None:
        actor_class: Any = ray.remote(EvaluatorActor)
        actor: Any = actor_class.options(**self.placement.actor_options()).remote()
        started = actor.start.remote(self.kind, self._spec_ref, self._order_ref)
        self._workers.append(_Worker(self._started, actor, started, ordered=self._order is not None))
        self._started += 1

    def _hand_out(self, waiting: deque[int], tasks: Sequence[Task]) -> None:
        for worker in self._workers:
            if not waiting:
                return
            if worker.starting or worker.task is not None:
                continue
            if self._order is not None and not worker.ordered:
                worker.actor.set_order.remote(self._order_ref)  # an actor works in order; a failure shows in the task behind it
                worker.ordered = True
            worker.task = waiting.popleft()
            worker.ready = worker.actor.run.remote(tasks[worker.task])
            worker.since = time.monotonic()

    def _collect(self) -> list[tuple[_Worker, Exception | None, Any]]:
        """Waits a moment; returns the workers whose task ended. Starting workers become ready, or are replaced, on the way."""
        busy = {worker.ready: worker for worker in self._workers if worker.starting or worker.task is not None}
        done, _ = ray.wait(list(busy), num_returns=1, timeout=_POLL_S)
        if done:  # whatever else is there by now comes with it
            done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
        ended: list[tuple[_Worker, Exception | None, Any]] = []
        for reference in done:
            worker = busy[reference]
            try:
                outcome = ray.get(reference)
            except RayError as error:
                if worker.starting:
                    self._start_failed(worker, error)
                else:
                    ended.append((worker, error, None))
                continue
            if worker.starting:
                worker.starting = False
                self._failed_starts = 0
                log.debug("evaluator %d ready: %s", worker.number, outcome)
            else:
                ended.append((worker, None, outcome))
        ended += self._late(busy.keys() - set(done), busy)
        return ended

    def _late(self, references: set[Any], busy: dict[Any, _Worker]) -> list[tuple[_Worker, Exception | None, Any]]:
        now = time.monotonic()
        late: list[tuple[_Worker, Exception | None, Any]] = []
        for worker in (busy[reference] for reference in references):
            if worker.starting and now - worker.since > self.placement.start_timeout_s and all(other.starting for other in self._workers):
                raise WorkersLost(
                    f"cluster: no evaluator started within {self.placement.start_timeout_s:.0f} s. Each asks for {self.placement.describe()}; "
                    f"the cluster has {describe_cluster()}. Ask for less (cluster.num_gpus_per_evaluator, cluster.num_cpus_per_evaluator) or add nodes"
                )
            if not worker.starting and now - worker.since > self.task_timeout_s:
                late.append((worker, TimeoutError(f"no answer within {self.task_timeout_s:.0f} s (cluster.task_timeout_s)"), None))
        return late

    def _recover(self, worker: _Worker, task: Task, failures: int, error: Exception) -> None:
        if isinstance(error, RayTaskError):
            cause = error.cause
            if isinstance(cause, (InputError, ScoringError)):
                raise cause from error
            failure = Failure("task_error", failures, str(cause))
        else:
            self.num_lost += 1
            failure = Failure("worker_lost", failures, _first_line(error))
        decision = self.policy.decide(failure)
        log.warning("evaluator %d: %s (%s); %s", worker.number, failure.kind.replace("_", " "), failure.cause, decision.value)
        if decision is Decision.ABORT:
            raise WorkersLost(f"a task failed {failures} times on different evaluators ({task}); the last time: {failure.cause}") from error
        self._replace(worker)

    def _start_failed(self, worker: _Worker, error: RayError) -> None:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, InputError):
            raise cause from error
        self._failed_starts += 1
        if self.policy.decide(Failure("start_failed", self._failed_starts, _last_line(error))) is Decision.ABORT:
            raise WorkersLost(f"{self._failed_starts} evaluators in a row failed to start; the last one: {_last_line(error)}") from error
        log.warning("evaluator %d failed to start (%s); starting another", worker.number, _last_line(error))
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self._drop(worker)
        self._fill()

    def _drop(self, worker: _Worker) -> None:
        ray.kill(worker.actor)
        self._workers.remove(worker)


def _first_line(error: Exception) -> str:
    """What happened to a process, without the addresses that Ray lists below it."""
    return _lines(error)[0]


def _last_line(error: Exception) -> str:
    """The exception at the end of a remote traceback."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
