"""Evaluators that misbehave. In a module of their own, which worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import torch

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from workers.evaluators.benchmarks import BenchmarkEvaluator
from workers.evaluators.shapes import Evaluator
from workers.pool.actor import ActorLauncher, EvaluatorActor
from workers.tasks import (
    AnswerResult,
    BenchmarkSpec,
    EvaluatorSpec,
    Result,
    ScoreResult,
    ScoreTask,
    Task,
)


def first_time(spec: EvaluatorSpec | BenchmarkSpec, name: str) -> bool:
    """Whether this is the first evaluator that asks: it leaves a mark beside the checkpoint, which
    each test has a copy of.
    """
    try:
        (spec.checkpoint.folder.parent / f"{name}.mark").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _is_target(task: Task) -> bool:
    return isinstance(task, ScoreTask) and task.batch == 2


class Poison(Evaluator):
    """Dies of one candidate."""

    def run(self, task: Task) -> Result:
        if _is_target(task) and any(
            candidate and candidate.layer == 1 for candidate in task.candidates
        ):  # type: ignore[union-attr]
            os._exit(1)
        return super().run(task)


class Broken(Evaluator):
    """Raises in one task."""

    def run(self, task: Task) -> Result:
        if _is_target(task):
            raise RuntimeError("shapes cannot be multiplied")
        return super().run(task)


class FindsBadInput(Evaluator):
    """Says in one task that its input cannot be used."""

    def run(self, task: Task) -> Result:
        if _is_target(task):
            raise InputError("calibration: one sequence does not fit")
        return super().run(task)


class Once(Evaluator):
    """Goes wrong in one task, once."""

    def run(self, task: Task) -> Result:
        if _is_target(task) and first_time(self.spec, "once"):
            self.go_wrong()
        return super().run(task)

    def go_wrong(self) -> None:
        raise NotImplementedError


class ExitsOnce(Once):
    def go_wrong(self) -> None:
        os._exit(3)


class CrashesOnce(Once):
    def go_wrong(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class RaisesOnce(Once):
    def go_wrong(self) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")


class HangsOnce(Once):
    def go_wrong(self) -> None:
        time.sleep(10_000)


class StopsOnce(Once):
    def go_wrong(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class StopsInTheFirstTask(Evaluator):
    """Whoever begins first, stops: before anybody knows how long a task takes."""

    def run(self, task: Task) -> Result:
        if first_time(self.spec, "first task"):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().run(task)


class ActorOnPretendedGpus(EvaluatorActor):
    """Ray hands out GPUs that no machine has: pinning is Ray's, not CUDA's."""

    def _check_gpus(self) -> None:
        pass


class PretendedGpus(ActorLauncher):
    actor = ActorOnPretendedGpus


class Swells(Once):
    """Takes memory until somebody kills it."""

    def go_wrong(self) -> None:
        kept = []
        while True:
            kept.append(torch.ones(16 * 2**20))
            time.sleep(0.02)


class FailsToStart(Evaluator):
    """Never starts."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        raise OSError("the disk of this node is broken")


class FailsToStartTwice(Evaluator):
    """Starts at the third try."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        if first_time(spec, "start one") or first_time(spec, "start two"):
            raise OSError("the disk of this node is broken")
        super().__init__(spec, order)


class FailsToStartAfterTheFirst(Evaluator):
    """Only one of them ever starts."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        if not first_time(spec, "the one"):
            raise OSError("the disk of this node is broken")
        super().__init__(spec, order)


class Slow(Evaluator):
    """One of them takes half a second longer for each task."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        self.is_slow = first_time(spec, "slow")
        super().__init__(spec, order)

    def run(self, task: Task) -> Result:
        started = time.perf_counter()
        result = super().run(task)
        if self.is_slow and isinstance(result, ScoreResult):
            time.sleep(0.5)
            return replace(result, seconds=time.perf_counter() - started)
        return result


class ComputesOtherwise(Evaluator):
    """One of them is on another kind of device."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        super().__init__(spec, order)
        if first_time(spec, "otherwise"):
            other = replace(self._info.arithmetic, device="cuda X", processor="")
            self._info = replace(self._info, arithmetic=other)


class DiesOfTheFirstRequest(BenchmarkEvaluator):
    """Whoever begins first, dies."""

    def run(self, task: Task) -> AnswerResult:
        if first_time(self.spec, "document"):
            os._exit(3)
        return super().run(task)


class RaisesAtTheFirstRequest(BenchmarkEvaluator):
    """Whoever begins first, raises."""

    def run(self, task: Task) -> AnswerResult:
        if first_time(self.spec, "document"):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().run(task)
