"""Evaluators that misbehave. In a module of their own, which worker processes can import."""

from __future__ import annotations

import os

from workers.evaluator import Evaluator
from workers.tasks import Result, ScoreTask, Task


class Poison(Evaluator):
    """Dies of one task."""

    def run(self, task: Task) -> Result:
        if isinstance(task, ScoreTask) and task.batch == 2:
            os._exit(1)
        return super().run(task)


class Broken(Evaluator):
    """Raises in one task."""

    def run(self, task: Task) -> Result:
        if isinstance(task, ScoreTask) and task.batch == 2:
            raise RuntimeError("shapes cannot be multiplied")
        return super().run(task)
