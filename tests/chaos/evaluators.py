"""An evaluator that goes wrong when it is told to.

In a module of its own, which worker processes can import.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning.importance.channel_order import ChannelOrder
from pruning.scoring.nll import Prefix
from pruning.shape import ModelShape
from workers.evaluators.shapes import Evaluator
from workers.tasks import EvaluatorSpec, Result, ScoreResult, ScoreTask, Task

ANY_START = "start"
"""Whom an order is for: an evaluator's process id, or whoever starts next."""


class Orders:
    """Files in a folder beside the checkpoint: an order is a file, and renaming it takes it, which
    only one process can do.

    Args:
        folder: of the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._given, self._taken = folder.parent / "orders", folder.parent / "taken"

    def prepare(self) -> None:
        self._given.mkdir()
        self._taken.mkdir()

    def give(self, number: int, whom: int | str, kind: str) -> None:
        scratch = self._taken.parent / "order"
        scratch.touch()
        scratch.rename(self._given / f"{whom}.{number}.{kind}")

    def take(self, whom: int | str) -> str | None:
        """The kind of the next order for `whom`, which is marked as taken by this process."""
        for path in sorted(self._given.glob(f"{whom}.*")):
            _, number, kind = path.name.split(".")
            try:
                path.rename(self._taken / f"{os.getpid()}.{number}.{kind}")
            except FileNotFoundError:
                continue
            return kind
        return None

    def withdraw(self, number: int) -> bool:
        """Takes an order back; false if it was taken."""
        for path in self._given.glob(f"*.{number}.*"):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            return True
        return False

    def taken(self) -> dict[int, int]:
        """Process that took each order, by the order's number."""
        found = [path.name.split(".") for path in self._taken.iterdir()]
        return {int(number): int(pid) for pid, number, _ in found}


class Unlucky(Evaluator):
    """Does what its orders say, once each."""

    def __init__(self, spec: EvaluatorSpec, order: ChannelOrder | None = None) -> None:
        self._orders = Orders(spec.checkpoint.folder)
        self._short_of_memory = False
        told = self._orders.take(ANY_START)
        if told == "start raises":
            raise OSError("the disk of this node is broken")
        if told == "start dies":
            os._exit(4)
        super().__init__(spec, order)

    def run(self, task: Task) -> Result:
        told = self._orders.take(os.getpid()) if isinstance(task, ScoreTask) else None
        if told is None:
            return super().run(task)
        return getattr(self, f"_{told.replace(' ', '_')}")(task)

    def _exit(self, task: Task) -> Any:
        os._exit(3)

    def _crash(self, task: Task) -> Any:
        faulthandler.disable()  # half a screen of names of modules
        os.kill(os.getpid(), signal.SIGSEGV)

    def _exception(self, task: Task) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def _stop(self, task: Task) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _hang(self, task: Task) -> Any:
        time.sleep(10_000)

    def _slow(self, task: Task) -> Result:
        started = time.perf_counter()
        result = super().run(task)
        time.sleep(1.5)
        assert isinstance(result, ScoreResult)
        return replace(result, seconds=time.perf_counter() - started)

    def _out_of_memory(self, task: Task) -> Result:
        self._short_of_memory = True
        result = super().run(task)
        assert isinstance(result, ScoreResult)
        assert result.oom_split
        return result

    def _answer_lost(self, task: Task) -> Any:
        super().run(task)
        os.kill(os.getpid(), signal.SIGKILL)

    def _prefix_of(self, task: ScoreTask, base: ModelShape) -> Prefix:
        if self._short_of_memory:
            self._short_of_memory = False
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._prefix_of(task, base)
