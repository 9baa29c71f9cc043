"""The evaluator pool as a model of lm-eval: its own `simple_evaluate` runs on the driver, and
every request that it makes is answered by an evaluator.

Importing this module imports lm_eval, which takes seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import lm_eval
import lm_eval.api.task
import lm_eval.evaluator
from lm_eval.api.model import LM

from pruning.errors import InputError
from workers.evaluators.benchmarks import without_bars
from workers.tasks import RequestKind, RequestTask

REQUESTS_PER_TASK = 32
"""At least so many requests go to an evaluator at once: seconds on a core.

Documents stay whole, and no task of the harness shares one with another, so that a longer run, or
one with other tasks, finds what a shorter one has stored.
"""


class PoolLM(LM):  # type: ignore[misc]
    """Takes the harness's requests and hands them out.

    Args:
        answer: gives the answers of each task.
    """

    def __init__(self, answer: Callable[[Sequence[RequestTask]], list[list[Any]]]) -> None:
        super().__init__()
        self._answer = answer

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [
            (float(nats), bool(greedy)) for nats, greedy in self._answers("loglikelihood", requests)
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [float(nats) for nats in self._answers("loglikelihood_rolling", requests)]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [str(text) for text in self._answers("generate_until", requests)]

    def _answers(self, kind: RequestKind, requests: Sequence[Any]) -> list[Any]:
        try:
            tasks = cut_into_tasks(kind, requests)
        except TypeError as error:
            raise InputError(
                f"evaluation.tasks: {requests[0].task_name} asks for more than text, which is "
                f"not supported ({error})"
            ) from error
        return [answer for answers in self._answer(tasks) for answer in answers]


def cut_into_tasks(kind: RequestKind, requests: Sequence[Any]) -> list[RequestTask]:
    """Requests in the harness's order, always cut at the same places.

    Raises:
        TypeError: a request holds more than text and numbers.
    """
    tasks = []
    for name, of_task in groupby(requests, key=lambda request: request.task_name):
        waiting: list[tuple[Any, ...]] = []
        for _, document in groupby(of_task, key=lambda request: request.doc_id):
            waiting += [request.args for request in document]
            if len(waiting) >= REQUESTS_PER_TASK:
                tasks.append(RequestTask.of(kind, waiting, str(name)))
                waiting = []
        if waiting:
            tasks.append(RequestTask.of(kind, waiting, str(name)))
    return tasks


def evaluate_tasks(
    model: LM, names: Sequence[str], manager: Any, *, num_fewshot: int | None, limit: int | None
) -> dict[str, dict[str, Any]]:
    """What `lm_eval.simple_evaluate` gives for each task: metrics under their own names, `_stderr`
    behind them, and `num_documents`.

    A metric of a filter other than `none` is called `metric,filter`. What has no number, such as an
    unknown standard error, is null.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault(
        "DISABLE_MULTIPROC", "1"
    )  # it would fork this process, with all its threads, to compute standard errors
    with without_bars(lm_eval.api.task), _without_git():
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=False,
            use_cache=None,
        )
    assert found is not None
    return {
        name: task_results(values, found["n-samples"].get(name))
        for name, values in found["results"].items()
    }


@contextmanager
def _without_git() -> Iterator[None]:
    """It asks git for the revision of the folder that the user is in, and where that is none, git's
    complaint looks like ours.
    """
    asked = lm_eval.evaluator.get_git_commit_hash
    try:
        lm_eval.evaluator.get_git_commit_hash = lambda: None
        yield
    finally:
        lm_eval.evaluator.get_git_commit_hash = asked


def task_results(
    values: Mapping[str, Any], num_samples: Mapping[str, int] | None
) -> dict[str, Any]:
    """One row of the harness's `results`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        metric, _, filter_name = name.partition(",")
        if filter_name:
            key = metric if filter_name == "none" else name
            found[key] = float(value) if isinstance(value, (int, float)) else None
    return found | ({"num_documents": num_samples["effective"]} if num_samples else {})
