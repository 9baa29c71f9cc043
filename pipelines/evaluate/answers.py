"""Tasks that answer requests or windows: what is in the store is not asked for again, what comes is
stored as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipelines.store.scores import AnswerContext, ScoreStore
from workers.pool.protocol import Pool
from workers.tasks import AnswerResult, AnswerTask, RequestTask

OnAnswers = Callable[[int, bool], None]
"""Told of the size of what got done, and whether it was computed.

Called about every second, with 0 if nothing got done.
"""


class CachedRequests:
    """The requests and windows of one model, answered by the store, else by its evaluators.

    Args:
        context: what the answers depend on besides the tasks.
        on_answers: told of progress.
    """

    def __init__(
        self,
        pool: Pool,
        store: ScoreStore,
        context: AnswerContext,
        on_answers: OnAnswers | None = None,
    ) -> None:
        self.pool, self.store, self.context = pool, store, context
        self.on_answers = on_answers or _nobody
        self.num_computed = 0
        self.num_reused = 0
        self.num_truncated = 0
        self.num_other_arithmetic = 0
        """Answers of evaluators that compute otherwise than the first one: they have keys of their
        own.
        """

    def answer(
        self, tasks: Sequence[AnswerTask], context: AnswerContext | None = None
    ) -> list[list[Any]]:
        """The answers of each task, in the order of the tasks.

        Each is in the store before this returns, also if it never does.
        """
        context = context or self.context
        different = {task.digest: task for task in tasks}
        known = self.store.lookup_answers(context, different)
        for digest in known:
            self.num_reused += different[digest].num_evaluations
            self.on_answers(progress_size(different[digest]), False)
        for answers in self.pool.run(
            [task for digest, task in different.items() if digest not in known]
        ):
            came: dict[AnswerContext, dict[str, list[Any]]] = {}
            for task, result in answers:
                assert isinstance(task, AnswerTask)
                assert isinstance(result, AnswerResult)
                origin = replace(context, arithmetic=result.arithmetic or context.arithmetic)
                came.setdefault(origin, {})[task.digest] = list(result.answers)
                self.num_computed += len(result.answers)
                self.num_truncated += result.num_truncated
                if origin != context:
                    self.num_other_arithmetic += len(result.answers)
            for origin, new in came.items():
                self.store.add_answers(origin, new)  # all that came together in one transaction
                known |= new
            done = [digest for new in came.values() for digest in new]
            self.on_answers(sum(progress_size(different[digest]) for digest in done), True)
        return [known[task.digest] for task in tasks]


def progress_size(task: AnswerTask) -> int:
    """About how many tokens a task is: the size of requests is in characters."""
    return max(1, task.size // 4) if isinstance(task, RequestTask) else task.size


def _nobody(size: int, computed: bool) -> None:
    """Nobody wants to know of progress."""
