"""Answers are shared by evaluations that compute alike, and by no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluate.answers import CachedRequests
from pipelines.store.scores import ScoreStore
from pruning.scoring.arithmetic import Arithmetic
from tests.pipelines.evaluate.conftest import QUICK, Evaluate
from tests.pipelines.store.contexts import ANSWERS
from workers.pool.protocol import Answer
from workers.tasks import AnswerResult, RequestTask, Task


def test_answers_are_for_those_who_compute_alike(
    run: Evaluate, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, found = (f"model.path={reader}", *QUICK, "evaluation.tasks=[piqa]"), []
    for number, setting in enumerate(("", "COMPATIBLE", "COMPATIBLE", "")):
        monkeypatch.setenv("MKL_CBWR", setting)
        outcome = run(*words, folder=f"evaluation{number}")
        assert outcome.status == 0, outcome.output
        found.append(outcome.evaluation["answers"])
    assert [answers["reused"] for answers in found[:2]] == [0, 0]
    assert [answers["computed"] for answers in found[2:]] == [0, 0]


def test_answers_of_other_evaluators_are_kept_apart(tmp_path: Path) -> None:
    own, other = (Arithmetic(device=device, num_threads=1) for device in ("cpu", "cuda X"))
    tasks = [RequestTask.of("loglikelihood", [(str(number), "")]) for number in range(2)]
    context = replace(ANSWERS, batch_size=1, arithmetic=own)

    class Pool:
        def run(self, asked: Sequence[Task]) -> Iterator[list[Answer]]:
            answers = zip(asked, (own, other), strict=True)
            yield [(task, AnswerResult(([0.5, True],), 0.0, 0, by)) for task, by in answers]

    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        cached = CachedRequests(Pool(), store, context)  # type: ignore[arg-type]
        assert cached.answer(tasks) == [[[0.5, True]]] * 2
        assert (cached.num_computed, cached.num_other_arithmetic) == (2, 1)
        digests = [task.digest for task in tasks]
        assert list(store.lookup_answers(context, digests)) == digests[:1]
        elsewhere = replace(context, arithmetic=other)
        assert list(store.lookup_answers(elsewhere, digests)) == digests[1:]
