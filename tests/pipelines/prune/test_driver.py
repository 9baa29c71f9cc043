"""The loop, with a pool that makes its scores up: no model, no Ray."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal, step_line
from pipelines.store.scores import Context, ScoreStore
from pipelines.tracking.metrics import step_metrics
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.costs.target import Target, costs_of
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic
from pruning.scoring.score import ShapeScore
from pruning.search.greedy import GreedySearch
from pruning.search.lazy import LazySearch
from pruning.search.selection import Exhaustive
from pruning.search.settings import LazySettings, SearchSettings
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config
from workers.pool.protocol import Answer
from workers.tasks import ScoreResult, ScoreTask, Task

ARITHMETIC = Arithmetic(device="cpu", num_threads=1)
CONTEXT = Context(
    model="m", tokens="", order="o", dtype="float32", batch_size=2, arithmetic=ARITHMETIC
)
CALIBRATION = Calibration(
    TokenSet(np.zeros((5, 9), dtype=np.int64)), TokenSet(np.ones((4, 9), dtype=np.int64)), None
)


class FakePool:
    """Scores are a function of shape and batch; answers come in any order and parts; it can die."""

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
            rows.append(
                tuple(
                    random.Random(f"{shape.text} {task.batch} {sequence}").random() * 8
                    for sequence in range(sequences)
                )
            )
        return ScoreResult(tuple(rows), 8, 0.0)


class FirstHalf(GreedySearch):
    """Scores the first half of the candidates only."""

    def selection(self, num_batches: int) -> Exhaustive:
        return Exhaustive(self.propose()[: (len(self.propose()) + 1) // 2], num_batches)

    def decides(self, scored: Collection[Removal]) -> bool:
        return set(scored) == set(self.selection(1).candidates)


def drive(
    folder: Path,
    pool: FakePool,
    store: str = "scores.db",
    kind: type[GreedySearch] = GreedySearch,
    targets: Sequence[Target] = (),
    mlp_channels: int = 48,
    **choices: Any,
) -> tuple[GreedySearch, Scorer, Journal]:
    folder.mkdir(exist_ok=True)
    accounting = Accounting(tiny_config("llama", intermediate_size=mlp_channels))
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.4,
        distribution=[50, 30, 20],
        mlp_group_channels=16,
        head_group_channels=16,
        **choices,
    )
    search, journal = kind(accounting, settings), Journal(folder / "trajectory.jsonl")
    journal.replay(search)
    with ScoreStore(f"sqlite:///{folder}/{store}") as scores:
        scorer = Scorer(pool, scores, CALIBRATION, CONTEXT)  # type: ignore[arg-type]
        run_search(
            search,
            scorer,
            journal,
            accounting=accounting,
            context_length=9,
            on_step=lambda _: None,
            targets=targets,
        )
    return search, scorer, journal


def times_removed(journal: Journal) -> list[object]:
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "timestamp")}
        for line in journal.lines
    ]


def test_every_candidate_is_asked_once(tmp_path: Path) -> None:
    pool = FakePool()
    search, scorer, journal = drive(tmp_path, pool)
    assert len(pool.asked) == len(set(pool.asked)) == scorer.num_scored
    expected = sum(
        len(step.candidates) * (3 if step.stage == "block" else 2) for step in search.steps
    )
    assert len(pool.asked) == expected
    assert len(journal.lines) == len(search.steps) > 5


def test_the_whole_table_decides_each_step(tmp_path: Path) -> None:
    """The journal is, byte for byte, what follows from every candidate's score on every batch."""
    search, _, journal = drive(tmp_path, FakePool(num_parts=3))
    again, evaluations = GreedySearch(search.accounting, search.settings), 0
    for line in journal.lines:
        assert again.stage is not None
        set_name, counts = again.stage.token_set, {"block": (2, 2, 1), "width": (2, 2)}
        table = {}
        for candidate in again.propose():
            text = again.shape.without(candidate).text
            sequences = [
                random.Random(f"{text} {batch} {sequence}").random() * 8
                for batch, count in enumerate(counts[set_name])
                for sequence in range(count)
            ]
            table[candidate] = ShapeScore(tuple(sequences), 8)
        step = again.observe({candidate: score.nll for candidate, score in table.items()})
        evaluations += len(table)
        expected = step_line(
            step,
            len(again.steps),
            again.accounting,
            token_set=set_name,
            context_length=9,
            evaluations=evaluations,
            stderrs={
                candidate: score.stderr_of_difference(table[step.removal])
                for candidate, score in table.items()
            },
            seconds=line["seconds"],
            timestamp=line["timestamp"],
        )
        assert json.dumps(line) == json.dumps(expected)


def test_the_disk_has_the_scores_of_a_step_before_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    append = Journal.append

    def written(journal: Journal, line: dict[str, object]) -> None:
        done.append("line")
        append(journal, line)

    monkeypatch.setattr(Journal, "append", written)
    monkeypatch.setattr(ScoreStore, "sync", lambda _: done.append("scores"))
    _, _, journal = drive(tmp_path, FakePool())
    assert done == ["scores", "line"] * len(journal.lines)


def test_each_step_says_what_it_saves_of_the_costs_that_are_asked_for(tmp_path: Path) -> None:
    accounting = Accounting(tiny_config("llama"))
    known = costs_of(accounting, context_length=9)
    costs = known["flops"], known["kv_cache"]
    targets = [Target(f"search.target.{each.name}", each, 0.4) for each in costs]
    _, _, journal = drive(tmp_path, FakePool(), targets=targets)
    dense = accounting.flops_per_token(accounting.dense, context_length=9)
    assert dense is not None
    for line in journal.lines:
        heads = sum(layer.kv_heads for layer in ModelShape.parse(line["shape"]).layers)
        assert line["saved"] == {
            "flops": pytest.approx(1 - line["flops_per_token"] / dense),
            "kv_cache": pytest.approx(1 - heads / 12),
        }


def test_a_selection_leaves_candidates_out(tmp_path: Path) -> None:
    """They are neither scored nor recorded, and the search goes on from its journal; one that
    wants all of them does not.
    """
    pool = FakePool()
    search, _, journal = drive(tmp_path, pool, kind=FirstHalf)
    proposed, shape = FirstHalf(search.accounting, search.settings), search.accounting.dense
    for step, line in zip(search.steps, journal.lines, strict=True):
        half = proposed.selection(1).candidates
        assert tuple(candidate for candidate, _ in step.candidates) == half
        assert [Removal.from_json(candidate) for candidate in line["candidates"]] == list(half)
        assert 0 < len(half) < len(proposed.propose())
        left_out = set(proposed.propose()) - set(half)
        assert not {shape.without(candidate).text for candidate in left_out} & {
            text for text, _ in pool.asked
        }
        shape = proposed.observe(dict(step.candidates)).shape
    assert journal.lines[-1]["evaluations"] == sum(len(step.candidates) for step in search.steps)
    resumed, _, _ = drive(tmp_path, FakePool(dies_after=0), kind=FirstHalf)
    assert resumed.steps == search.steps
    with pytest.raises(InputError, match="step 1 of .* does not follow from its settings"):
        drive(tmp_path, FakePool())


LAZY = LazySettings(wave_size=1, tolerance=0.0, rescore_every=3, near_layers=0)


def drive_lazily(folder: Path, pool: FakePool) -> tuple[GreedySearch, Scorer, Journal]:
    return drive(folder, pool, kind=LazySearch, lazy=LAZY)


@pytest.mark.parametrize("dies_after", [None, 0, 25, 40, 60])
def test_a_lazy_search_goes_on_and_is_split_to_the_same_bytes(
    tmp_path: Path, dies_after: int | None
) -> None:
    whole = drive_lazily(tmp_path / "whole", FakePool())
    assert any(line["unscored"] for line in whole[2].lines)
    if dies_after is not None:
        with pytest.raises(ConnectionError):
            drive_lazily(tmp_path / "run", FakePool(3, dies_after))
    pool = FakePool(5)
    _, _, journal = drive_lazily(tmp_path / "run", pool)
    assert times_removed(journal) == times_removed(whole[2])
    again, _, _ = drive_lazily(tmp_path / "run", FakePool(dies_after=0))
    assert again.steps == whole[0].steps


def test_a_lazy_search_records_what_it_left_out(tmp_path: Path) -> None:
    """Which is not scored, and whose change was recorded before; the base once in a stage."""
    pool = FakePool()
    search, scorer, journal = drive_lazily(tmp_path, pool)
    shape, changes, known = search.accounting.dense, dict[Removal, float](), set[str]()
    base, stage = math.nan, ""
    asked = {text for text, _ in pool.asked}
    for line, step in zip(journal.lines, search.steps, strict=True):
        assert ("base_nll" in line) == (step.stage != stage)
        base, stage = line.get("base_nll", base), step.stage
        left_out = {Removal.from_json(each): each["change"] for each in line["unscored"]}
        scored = {Removal.from_json(each): each["nll"] for each in line["candidates"]}
        assert left_out == {each: changes[each] for each in left_out}
        assert not set(left_out) & set(scored)
        known |= {shape.without(each).text for each in scored}
        changes |= {each: nll - base for each, nll in scored.items()}
        shape, base = step.shape, line["nll"]
    assert known <= asked
    bases = {line["base_nll"] for line in journal.lines if "base_nll" in line}
    assert len(bases) == 3
    assert len(asked - known) <= 3, "nothing but candidates that were scored, and bases"
    assert journal.lines[-1]["evaluations"] == sum(len(step.candidates) for step in search.steps)
    assert scorer.num_scored == len(pool.asked)
    with pytest.raises(InputError, match="step 1 of .* does not follow from its settings"):
        drive(tmp_path, FakePool())


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
    assert len(first.asked) - 24 <= stored_before <= dies_after, (
        "only what was in flight is asked again"
    )
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
        score = scorer.score_shape("block", dense)
    rows = [
        random.Random(f"{dense.text} {batch} {sequence}").random() * 8
        for batch, count in ((0, 2), (1, 2), (2, 1))
        for sequence in range(count)
    ]
    assert score.nll_per_sequence == tuple(rows)
    assert score.nll == sum(rows) / (5 * 8)


def test_standard_errors_are_of_paired_differences(tmp_path: Path) -> None:
    """Against NumPy, from what the pool made up."""
    search, _, journal = drive(tmp_path, FakePool(num_parts=3))
    batches = {
        "block": [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)],
        "width": [(0, 0), (0, 1), (1, 0), (1, 1)],
    }

    def per_token(shape: ModelShape, set_name: str) -> np.ndarray:
        return (
            np.array(
                [
                    random.Random(f"{shape.text} {batch} {sequence}").random() * 8
                    for batch, sequence in batches[set_name]
                ]
            )
            / 8
        )

    base = search.accounting.dense
    for step, line in zip(search.steps, journal.lines, strict=True):
        set_name = "block" if step.stage == "block" else "width"
        best = per_token(base.without(step.removal), set_name)
        expected = []
        for removal, _ in step.candidates:
            difference = per_token(base.without(removal), set_name) - best
            expected.append(np.std(difference, ddof=1) / np.sqrt(len(difference)))
        found = [candidate["stderr"] for candidate in line["candidates"]]
        assert found == pytest.approx(expected, rel=1e-9)
        chosen = [removal for removal, _ in step.candidates].index(step.removal)
        assert found[chosen] == 0.0
        others = sorted(
            (nll, index) for index, (_, nll) in enumerate(step.candidates) if index != chosen
        )
        assert line["margin_stderr"] == (found[others[0][1]] if others else None)
        base = step.shape


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [((1.0,), (2.0,)), ((1.0, math.nan), (1.0, 2.0)), ((1.0, 2.0), (math.inf, 2.0))],
)
def test_one_sequence_or_no_number_has_no_standard_error(
    mine: tuple[float, ...], theirs: tuple[float, ...]
) -> None:
    assert ShapeScore(mine, 4).stderr_of_difference(ShapeScore(theirs, 4)) is None


def test_a_standard_error_by_hand() -> None:
    """Differences per token 1, 2, 3: their mean is 2, their variance 1."""
    assert ShapeScore((4.0, 8.0, 12.0), 4).stderr_of_difference(
        ShapeScore((0.0, 0.0, 0.0), 4)
    ) == pytest.approx(1 / math.sqrt(3))


def test_a_journal_from_before_standard_errors_goes_on(tmp_path: Path) -> None:
    _, _, whole = drive(tmp_path, FakePool())
    old = [json.loads(json.dumps(line)) for line in whole.lines[:3]]
    for line in old:
        del line["margin_stderr"]
        for candidate in line["candidates"]:
            del candidate["stderr"]
    (tmp_path / "trajectory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    _, scorer, journal = drive(tmp_path, FakePool())
    assert scorer.num_scored == 0
    assert journal.lines[:3] == old
    assert [line["removed"] for line in journal.lines] == [line["removed"] for line in whole.lines]
    assert "prune/margin_stderr" in step_metrics(old[0])
