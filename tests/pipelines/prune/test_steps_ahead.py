"""Where a search knows its next steps, they are scored together, and the journal cannot tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal
from pipelines.store.scores import ScoreStore
from pruning.costs.accounting import Accounting
from pruning.search.fixed import FixedSearch, random_path
from pruning.search.settings import SearchSettings
from tests.conftest import tiny_config
from tests.pipelines.prune.test_driver import (
    ARITHMETIC,
    CALIBRATION,
    CONTEXT,
    FakePool,
    times_removed,
)
from workers.pool.protocol import Answer
from workers.tasks import ScoreResult, ScoreTask, Task

NUM_BATCHES = 3


class WidePool(FakePool):
    """Of several evaluators, all of another kind than the search's own; remembers how many tasks
    came together, and which of them had a prefix to share.
    """

    def __init__(self, num_evaluators: int, dies_after: int | None = None) -> None:
        super().__init__(dies_after=dies_after)
        self.num_evaluators = num_evaluators
        self.together: list[int] = []
        self.shared = 0

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        self.together += [len(tasks)] if tasks else []
        self.shared += sum(task.candidates != (None,) for task in tasks)  # type: ignore[union-attr]
        return super().run(tasks)

    def _score(self, task: ScoreTask) -> ScoreResult:
        other = replace(ARITHMETIC, device="cuda X")
        return replace(super()._score(task), arithmetic=other, oom_split=task.batch == 1)


def drive(folder: Path, pool: WidePool) -> tuple[FixedSearch, Scorer, Journal]:
    folder.mkdir(exist_ok=True)
    accounting = Accounting(tiny_config("llama"))
    settings = SearchSettings.resolved(
        accounting.geometry, target_ratio=0.6, distribution=[1, 0, 0], strategy="random", seed=3
    )
    search = FixedSearch(accounting, settings, random_path(accounting.dense, 3))
    journal = Journal(folder / "trajectory.jsonl")
    journal.replay(search)
    with ScoreStore(f"sqlite:///{folder}/scores.db") as store:
        scorer = Scorer(pool, store, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
        scorer.deviating.update(journal.deviating())
        run_search(
            search, scorer, journal, accounting=accounting, context_length=9, on_step=lambda _: None
        )
    return search, scorer, journal


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[FixedSearch, Scorer, Journal]:
    """With too few evaluators for more than one step at a time."""
    pool = WidePool(1)
    found = drive(tmp_path_factory.mktemp("alone"), pool)
    assert pool.together == [NUM_BATCHES] * len(found[0].steps)
    assert len(found[0].steps) > 4
    return found


@pytest.mark.parametrize(("num_evaluators", "steps"), [(6, 4), (1000, 1000)])
def test_the_journal_does_not_tell(
    tmp_path: Path,
    alone: tuple[FixedSearch, Scorer, Journal],
    num_evaluators: int,
    steps: int,
) -> None:
    pool = WidePool(num_evaluators)
    search, scorer, journal = drive(tmp_path, pool)
    assert times_removed(journal) == times_removed(alone[2])
    assert scorer.evaluations == alone[1].evaluations
    assert scorer.evaluations == {
        "scored": NUM_BATCHES * len(search.steps),
        "reused": 0,
        "halved": len(search.steps),
        "other_arithmetic": NUM_BATCHES * len(search.steps),
    }
    assert pool.together[0] == NUM_BATCHES * min(steps, len(search.steps))
    assert sum(pool.together) == NUM_BATCHES * len(search.steps)
    assert pool.shared == 0, "a shape that is alone on a batch runs whole, not from a prefix"


@pytest.mark.parametrize("dies_after", [1, 8, 14])
def test_a_driver_that_dies_goes_on(
    tmp_path: Path, alone: tuple[FixedSearch, Scorer, Journal], dies_after: int
) -> None:
    """Nothing that was answered is asked again of evaluators that compute alike, and a score that
    deviates counts in the line of its own step alone.
    """
    with pytest.raises(ConnectionError):
        drive(tmp_path, WidePool(6, dies_after))
    search, scorer, journal = drive(tmp_path, WidePool(6))
    lines = [
        {name: value for name, value in line.items() if name != "deviating"}
        for line in times_removed(journal)  # type: ignore[attr-defined]
    ]
    assert lines == [
        {name: value for name, value in line.items() if name != "deviating"}
        for line in times_removed(alone[2])  # type: ignore[attr-defined]
    ]
    assert journal.deviating() == {
        "halved": len(search.steps),
        "other_arithmetic": NUM_BATCHES * len(search.steps),
    }
    assert scorer.evaluations["other_arithmetic"] == NUM_BATCHES * len(search.steps)


def test_seconds_are_shared_by_the_steps_that_were_scored_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class SlowPool(WidePool):
        def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
            clock[0] += 7.0 if tasks else 0.0
            return super().run(tasks)

    monkeypatch.setattr("pipelines.prune.driver.time.monotonic", lambda: clock[0])
    search, _, journal = drive(tmp_path, SlowPool(1000))
    seconds = [line["seconds"] for line in journal.lines]
    assert seconds == [pytest.approx(7.0 / len(search.steps), abs=1e-3)] * len(search.steps)
