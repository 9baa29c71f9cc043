"""What the loop of a search does, in which order: the search and its scorer follow a script."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.prune import driver
from pipelines.runs.journal import Journal
from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.scoring.score import BatchScore
from pruning.search.selection import Ask, Exhaustive
from pruning.search.step import Step
from pruning.shape import LayerShape, ModelShape, Removal
from tests.conftest import tiny_config

MLPS = tuple(Removal("mlp", layer, 0) for layer in range(4))
ACCOUNTING = Accounting(tiny_config("llama"))
DENSE = ACCOUNTING.dense


class Script:
    """A search that removes one MLP after the other, each against an attention block.

    Args:
        foresees: whether it says before what goes next.
        steps: that were taken before.
    """

    def __init__(self, *, foresees: bool = False, steps: Sequence[Step] = ()) -> None:
        self.foresees, self.steps = foresees, list(steps)
        self.stage = SimpleNamespace(token_set="width")

    @property
    def shape(self) -> ModelShape:
        return self.steps[-1].shape if self.steps else DENSE

    @property
    def done(self) -> bool:
        return len(self.steps) == len(MLPS)

    def foreseen(self) -> tuple[Removal, ...]:
        return MLPS[len(self.steps) :] if self.foresees else ()

    def propose(self) -> tuple[Removal, ...]:
        return MLPS[len(self.steps)], Removal("attention", 1, 0)

    def selection(self, num_batches: int) -> Exhaustive:
        return Exhaustive(self.propose(), num_batches)

    def observe(self, scores: Mapping[Removal | None, float]) -> Step:
        removal = self.propose()[0]
        candidates = tuple((each, scores[each]) for each in self.propose())
        shape = self.shape.without(removal)
        step = Step("block", removal, shape, scores[removal], 0.5, candidates)
        self.steps.append(step)
        return step


class Scoring:
    """Makes up scores, and writes down what was done in which order."""

    def __init__(self, num_evaluators: int = 1, num_batches: int = 1) -> None:
        self.done: list[str] = []
        self.ahead: list[list[ModelShape]] = []
        self.asked: set[tuple[ModelShape, Ask]] = set()
        self.pool = SimpleNamespace(num_evaluators=num_evaluators)
        self.store = SimpleNamespace(sync=lambda: self.done.append("sync"))
        self.deviating: Counter[str] = Counter()
        self.deviates = [0] * len(MLPS)
        self.attention = (2.0, 4.0)
        self._num_batches = num_batches

    def num_batches(self, set_name: SetName) -> int:
        assert set_name == "width"
        return self._num_batches

    def score_ahead(self, set_name: SetName, shapes: Sequence[ModelShape]) -> None:
        assert set_name == "width"
        self.ahead.append(list(shapes))
        self.done.append("ahead")

    def score(
        self, set_name: SetName, base: ModelShape, asks: Sequence[Ask]
    ) -> dict[Ask, BatchScore]:
        assert set_name == "width"
        new = {(base, ask) for ask in asks}
        assert not new & self.asked, "nothing is asked twice"
        self.asked |= new
        self.done.append(f"score from {sum(layer.mlp_channels > 0 for layer in base.layers)} MLPs")
        self.deviating["halved"] += self.deviates.pop(0)
        nll = {"mlp": (1.0, 2.0), "attention": self.attention}
        return {ask: BatchScore(nll[ask[0].kind if ask[0] else ""], 1) for ask in asks}


def run(
    folder: Path,
    scoring: Scoring,
    search: Script | None = None,
    computed_with: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The lines that are told; those on the disk are the same, and are there before."""
    told: list[dict[str, Any]] = []
    path = folder / "trajectory.jsonl"

    def on_step(line: Mapping[str, Any]) -> None:
        assert json.loads(path.read_text().splitlines()[-1]) == line
        scoring.done.append("told")
        told.append(dict(line))

    driver.run_search(
        search or Script(),  # type: ignore[arg-type]
        scoring,  # type: ignore[arg-type]
        Journal(path),
        accounting=ACCOUNTING,
        context_length=9,
        on_step=on_step,
        computed_with=computed_with,
    )
    return told


def test_each_step_is_scored_synced_written_and_told(tmp_path: Path) -> None:
    scoring = Scoring(num_batches=2)
    lines = run(tmp_path, scoring, computed_with={"device": "cpu X"})
    assert scoring.done == [
        event
        for num_left in (4, 3, 2, 1)
        for event in (f"score from {num_left} MLPs", "sync", "told")
    ]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["evaluations"] for line in lines] == [2, 4, 6, 8]
    assert [line["shape"] for line in lines] == [
        ModelShape((LayerShape(3, 0),) * step + (LayerShape(3, 48),) * (4 - step)).text
        for step in (1, 2, 3, 4)
    ]
    for line in lines:
        assert line["device"] == "cpu X"
        assert line["token_set"] == "width"
        assert line["nll"] == 1.5
        assert [each["nll"] for each in line["candidates"]] == [1.5, 3.0]
        # twice each: per token the differences are 1 and 2
        assert line["margin_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)
        assert "deviating" not in line


def test_a_search_goes_on_counting_where_it_was(tmp_path: Path) -> None:
    shape = DENSE.without(MLPS[0])
    before = Step("block", MLPS[0], shape, 1.0, 0.2, tuple((each, 1.0) for each in MLPS))
    lines = run(tmp_path, Scoring(), Script(steps=[before]))
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert [line["evaluations"] for line in lines] == [6, 8, 10]


def test_a_line_says_how_many_scores_of_its_own_step_deviate(tmp_path: Path) -> None:
    scoring = Scoring()
    scoring.deviating["halved"] = 5
    scoring.deviates = [2, 0, 1, 0]
    found = [line.get("deviating") for line in run(tmp_path, scoring)]
    assert found == [{"halved": 2}, None, {"halved": 1}, None]


@pytest.mark.parametrize("attention", [math.nan, math.inf, 4.0])
def test_a_candidate_whose_score_is_not_finite_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, attention: float
) -> None:
    scoring = Scoring()
    scoring.attention = (2.0, attention)
    run(tmp_path, scoring)
    said = [record.getMessage() for record in caplog.records if record.name == driver.__name__]
    block = Removal("attention", 1, 0)
    assert said == [
        f"step {step}: NaN or infinite score, out: {block}"
        for step in ((1, 2, 3, 4) if attention != 4.0 else ())
    ]


@pytest.mark.parametrize(
    ("num_evaluators", "num_batches", "together"),
    [(3, 2, [3, 1]), (2, 2, [2, 2]), (1, 4, [1, 1, 1, 1]), (2, 1, [4]), (99, 1, [4])],
)
def test_steps_that_are_known_are_scored_together_for_two_tasks_of_each_evaluator(
    tmp_path: Path, num_evaluators: int, num_batches: int, together: list[int]
) -> None:
    """A step has a task for each batch. The next ones are scored when those are through."""
    scoring = Scoring(num_evaluators, num_batches)
    run(tmp_path, scoring, Script(foresees=True))
    assert [len(shapes) for shapes in scoring.ahead] == together
    shapes, wanted = DENSE, []
    for removal in MLPS:
        shapes = shapes.without(removal)
        wanted.append(shapes)
    assert [shape for shapes in scoring.ahead for shape in shapes] == wanted
    told = [event for event in scoring.done if event in ("ahead", "told")]
    assert told == [event for number in together for event in ("ahead", *["told"] * number)]


@pytest.mark.parametrize(
    ("foresees", "num_evaluators", "seconds"),
    [(False, 1, [1.0] * 4), (True, 1, [1.5] * 4), (True, 2, [1.25] * 4)],
    ids=["one after another", "two together", "four together"],
)
def test_seconds_of_a_step_hold_its_share_of_what_was_scored_together(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    foresees: bool,
    num_evaluators: int,
    seconds: list[float],
) -> None:
    """On a clock that goes on by a second whenever it is read: twice for each step, and twice for
    each time that some are scored together.
    """
    clock = count(100.0)
    monkeypatch.setattr("pipelines.prune.driver.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("pipelines.prune.driver.time.time", lambda: 1e9)
    lines = run(tmp_path, Scoring(num_evaluators), Script(foresees=foresees))
    assert [line["seconds"] for line in lines] == seconds
    assert {line["timestamp"] for line in lines} == {1e9}
