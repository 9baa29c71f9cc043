"""Scores that came about otherwise than the others are kept apart in the store, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.prune.scorer import Scorer
from pipelines.store.scores import ScoreStore
from pruning.scoring.score import BatchScore
from pruning.shape import ModelShape, Removal
from tests.pipelines.prune.test_driver import ARITHMETIC, CALIBRATION, CONTEXT
from workers.pool.protocol import Answer
from workers.tasks import ScoreResult, ScoreTask, Task

DENSE = ModelShape.parse("4x176 4x176 4x176")
CANDIDATES = [Removal("attention", layer, 0) for layer in range(3)]
OTHER = replace(ARITHMETIC, device="cuda X")
BLOCK = replace(CONTEXT, tokens=CALIBRATION.block.fingerprint)
"""Three batches."""

Result = Callable[[int], ScoreResult]


class Pool:
    """Answers each batch with what `result` makes of it."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        yield [(task, self.result(task.batch)) for task in tasks if isinstance(task, ScoreTask)]


def clean(batch: int) -> ScoreResult:
    return ScoreResult(((0.5, batch),) * 3, 8, 0.0, arithmetic=ARITHMETIC)


def halved(batch: int) -> ScoreResult:
    return replace(clean(batch), nll=((1.5, batch),) * 3, oom_split=True)


def elsewhere(batch: int) -> ScoreResult:
    return replace(clean(batch), nll=((2.5, batch),) * 3, arithmetic=OTHER)


def scored(store: ScoreStore, result: Result) -> tuple[Scorer, list[float]]:
    """What a search finds, which has the first number of each batch of the first candidate."""
    scorer = Scorer(Pool(result), store, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
    asks = [(candidate, batch) for candidate in CANDIDATES for batch in range(3)]
    found = scorer.score("block", DENSE, asks)
    return scorer, [found[CANDIDATES[0], batch].nll[0] for batch in range(3)]


def test_each_has_the_key_of_how_it_came_about(tmp_path: Path) -> None:
    results = (clean, halved, elsewhere)
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        scorer, found = scored(store, lambda batch: results[batch](batch))
        assert found == [0.5, 1.5, 2.5], "this search uses them all"
        assert scorer.evaluations == {
            "scored": 9,
            "reused": 0,
            "halved": 3,
            "other_arithmetic": 3,
        }
        digests = [DENSE.changed(candidate).digest for candidate in CANDIDATES]
        contexts = (BLOCK, replace(BLOCK, halved=True), replace(BLOCK, arithmetic=OTHER))
        for batch, context in enumerate(contexts):
            assert {key[1] for key in store.lookup(context, digests)} == {batch}


def test_they_are_counted_when_they_come_from_the_store(tmp_path: Path) -> None:
    """Those of another arithmetic do not come: they are scored anew."""
    results = (clean, halved, elsewhere)
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        scored(store, lambda batch: results[batch](batch))
        scorer, found = scored(store, clean)
        assert found == [0.5, 1.5, 0.5]
        assert scorer.evaluations == {
            "scored": 3,
            "reused": 6,
            "halved": 3,
            "other_arithmetic": 0,
        }


def test_one_of_a_whole_batch_is_taken_before_one_of_halves(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        digests = {candidate: DENSE.changed(candidate).digest for candidate in CANDIDATES}
        for context, result in ((replace(BLOCK, halved=True), halved), (BLOCK, clean)):
            store.add(
                context,
                {
                    (digests[candidate], batch): BatchScore(result(batch).nll[0], 8)
                    for candidate in CANDIDATES
                    for batch in range(3)
                },
            )
        scorer, found = scored(store, clean)
        assert found == [0.5, 0.5, 0.5]
        assert scorer.evaluations["halved"] == 0


def test_a_search_uses_again_what_another_of_its_evaluators_scored(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        scorer, _ = scored(store, elsewhere)
        asks = [(candidate, batch) for candidate in CANDIDATES for batch in range(3)]
        scorer.score("block", DENSE, asks)
        assert scorer.evaluations == {
            "scored": 9,
            "reused": 9,
            "halved": 0,
            "other_arithmetic": 18,
        }


def test_a_candidate_that_is_alone_runs_as_a_shape_of_its_own(tmp_path: Path) -> None:
    """It would share what lies below it with nobody."""
    tasks: list[ScoreTask] = []

    class Watched(Pool):
        def run(self, asked: Sequence[Task]) -> Iterator[list[Answer]]:
            for task in asked:
                assert isinstance(task, ScoreTask)
                tasks.append(task)
                rows = clean(task.batch).nll[: len(task.candidates)]
                yield [(task, replace(clean(task.batch), nll=rows))]

    first, second, _ = CANDIDATES
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        scorer = Scorer(Watched(clean), store, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
        found = scorer.score("block", DENSE, [(first, 0), (first, 1), (second, 1)])
    assert [(task.base, task.batch, task.candidates) for task in tasks] == [
        (DENSE.changed(first).text, 0, (None,)),
        (DENSE.text, 1, (first, second)),
    ]
    assert [found[first, batch].nll for batch in (0, 1)] == [(0.5, 0), (0.5, 1)]
