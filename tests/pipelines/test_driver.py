"""The loop, with a pool that makes its scores up: no model, no Ray."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.driver import Scorer, run_search
from pipelines.journal import Journal
from pipelines.store import Context, ScoreStore
from pruning.accounting import Accounting
from pruning.calibration import Calibration, TokenSet
from pruning.search import GreedySearch, make_stages
from pruning.shape import ModelShape
from tests.conftest import tiny_config
from workers.pool import Answer
from workers.tasks import ScoreResult, ScoreTask, Task

CONTEXT = Context(model="m", tokens="", order="o", dtype="float32", device="cpu", batch_size=2, num_threads=1)
CALIBRATION = Calibration(TokenSet(np.zeros((5, 9), dtype=np.int64)), TokenSet(np.ones((4, 9), dtype=np.int64)), None)


class FakePool:
    """Scores are a function of shape and batch; answers come in any order, in parts of any size, some together; it can die."""

    def __init__(self, num_parts: int = 1, dies_after: int | None = None) -> None:
        self.num_parts = num_parts
        self.dies_after = dies_after
        self.asked: list[tuple[str, int]] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Answer]]:
        draw = random.Random(len(self.asked))
        parts = [
            replace(task, candidates=task.candidates[part :: self.num_parts])
            for task in tasks
            if isinstance(task, ScoreTask)
            for part in range(min(self.num_parts, len(task.candidates)))
        ]
        draw.shuffle(parts)
        while parts:
            together = [parts.pop() for _ in range(min(len(parts), draw.randint(0, 3)))]
            yield [(task, self._score(task)) for task in together]

    def _score(self, task: ScoreTask) -> ScoreResult:
        rows = []
        for candidate in task.candidates:
            base = ModelShape.parse(task.base)
            shape = base if candidate is None else base.without(candidate)
            self.asked.append((shape.text, task.batch))
            if self.dies_after is not None and len(self.asked) > self.dies_after:
                raise ConnectionError("the driver was killed")
            sequences = 1 if (task.set_name, task.batch) == ("block", 2) else 2
            rows.append(tuple(random.Random(f"{shape.text} {task.batch} {sequence}").random() * 8 for sequence in range(sequences)))
        return ScoreResult(tuple(rows), 8, 0.0)


def drive(folder: Path, pool: FakePool, store: str = "scores.db") -> tuple[GreedySearch, Scorer, Journal]:
    folder.mkdir(exist_ok=True)
    accounting = Accounting(tiny_config("llama"))
    stages = make_stages(accounting, target_ratio=0.4, distribution=[50, 30, 20], mlp_group_channels=16, head_group_channels=16)
    search, journal = GreedySearch(accounting, stages), Journal(folder / "trajectory.jsonl")
    journal.replay(search)
    with ScoreStore(f"sqlite:///{folder}/{store}") as scores:
        scorer = Scorer(pool, scores, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
        run_search(search, scorer, journal, accounting=accounting, context_length=9, on_step=lambda _: None)
    return search, scorer, journal


def times_removed(journal: Journal) -> list[object]:
    return [{name: value for name, value in line.items() if name not in ("seconds", "timestamp")} for line in journal.lines]


def test_every_candidate_is_asked_once(tmp_path: Path) -> None:
    pool = FakePool()
    search, scorer, journal = drive(tmp_path, pool)
    assert len(pool.asked) == len(set(pool.asked)) == scorer.num_scored
    expected = sum(len(step.candidates) * (3 if step.stage == "block" else 2) for step in search.steps)
    assert len(pool.asked) == expected
    assert len(journal.lines) == len(search.steps) > 5


@pytest.mark.parametrize("num_parts", [2, 5, 64])
def test_splitting_does_not_change_a_bit(tmp_path: Path, num_parts: int) -> None:
    one, many = drive(tmp_path / "one", FakePool()), drive(tmp_path / "many", FakePool(num_parts))
    assert times_removed(one[2]) == times_removed(many[2])


@pytest.mark.parametrize("dies_after", [0, 1, 10, 25, 60])
def test_a_driver_that_dies_anywhere_goes_on(tmp_path: Path, dies_after: int) -> None:
    whole = drive(tmp_path / "whole", FakePool())
    first, second = FakePool(3, dies_after), FakePool(2)
    with pytest.raises(ConnectionError):
        drive(tmp_path / "run", first)
    _, scorer, journal = drive(tmp_path / "run", second)
    assert times_removed(journal) == times_removed(whole[2])
    stored_before = whole[1].num_scored - len(second.asked)
    assert len(first.asked) - 24 <= stored_before <= dies_after, "only what was in flight is asked again"
    assert scorer.num_scored == len(second.asked)


def test_a_lost_journal_is_rebuilt_from_the_store(tmp_path: Path) -> None:
    whole = drive(tmp_path, FakePool())
    before = times_removed(whole[2])
    (tmp_path / "trajectory.jsonl").unlink()
    _, scorer, journal = drive(tmp_path, FakePool(dies_after=0))
    assert times_removed(journal) == before
    assert scorer.num_scored == 0
    assert scorer.num_reused == whole[1].num_scored


def test_means_are_over_all_tokens(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store:
        scorer = Scorer(FakePool(), store, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
        dense = ModelShape.dense(4, 3, 48)
        score = scorer.score("block", dense, [None])[None]
    rows = [random.Random(f"{dense.text} {batch} {sequence}").random() * 8 for batch, count in ((0, 2), (1, 2), (2, 1)) for sequence in range(count)]
    assert score.nll_per_sequence == tuple(rows)
    assert score.nll == sum(rows) / (5 * 8)
