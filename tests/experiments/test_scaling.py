"""What the scaling benchmark says that evaluators' time goes into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.scaling import Outcome, Shares, missed, row
from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal
from pipelines.store.scores import Context, ScoreStore
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.models.checkpoint import Checkpoint
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from tests.conftest import tiny_config
from workers.pool.inline_pool import InlinePool
from workers.pool.simulated import Pace, SimulatedEvaluator
from workers.tasks import EvaluatorSpec

PACE = Pace(layer_s=2.0, head_s=3.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Time that only passes where an evaluator waits."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    clock.sleep = sleep
    monkeypatch.setattr("workers.pool.simulated.time", clock)
    return clock


def searched(folder: Path) -> tuple[GreedySearch, SimulatedEvaluator]:
    """A whole search on one evaluator."""
    config = tiny_config("llama", attention_bias=False, mlp_bias=False)
    config.save_pretrained(folder / "model")
    accounting = Accounting(config)
    settings = SearchSettings.resolved(
        accounting.geometry,
        target_ratio=0.3,
        distribution=(40, 40, 20),
        mlp_group_channels=8,
        head_group_channels=16,
    )
    search = GreedySearch(accounting, settings)
    evaluator = SimulatedEvaluator(0, config.num_hidden_layers, PACE)
    spec = EvaluatorSpec(Checkpoint(folder / "model"), "float32", {}, batch_size=2)
    pool = InlinePool(spec, kind=lambda *_, **__: evaluator)
    tokens = TokenSet(np.zeros((8 * 2, 2), dtype=np.int64))
    with ScoreStore(f"sqlite:///{folder}/scores.db") as store:
        context = Context(
            model="m",
            tokens="",
            order="o",
            dtype="float32",
            batch_size=2,
            arithmetic=pool.arithmetic,
        )
        scorer = Scorer(pool, store, Calibration(tokens, tokens, None), context)
        options: dict[str, Any] = {"context_length": 2, "on_step": lambda _: None}
        journal = Journal(folder / "trajectory.jsonl")
        run_search(search, scorer, journal, accounting=accounting, **options)
    return search, evaluator


def test_what_is_no_candidate_is_a_prefix(clock: SimpleNamespace, tmp_path: Path) -> None:
    """2 s for each layer and 3 s for each head of a candidate, on every batch. Prefixes are whole
    on all batches but the one that the evaluator holds from the step before.
    """
    search, evaluator = searched(tmp_path)
    assert len({step.stage for step in search.steps}) == 3
    busy_s, num_layers = evaluator.busy_s, len(search.shape.layers)
    assert busy_s == clock.now > 0
    shares = Shares.of(search, PACE, num_batches=8, busy_s=busy_s, total_s=2 * busy_s)
    candidates = [each for step in search.steps for each, _ in step.candidates]
    scoring_s = 8 * sum(2 * (num_layers - each.layer) + 3 for each in candidates)
    assert shares.scoring == pytest.approx(scoring_s / (2 * busy_s))
    assert shares.scoring + shares.prefixes == pytest.approx(0.5)
    whole_s = len(search.steps) * num_layers * 2
    assert 7 * whole_s < shares.prefixes * 2 * busy_s < 8 * whole_s


def test_the_table_tells_scoring_from_prefixes() -> None:
    shares = Shares(scoring=0.861, prefixes=0.052)
    outcome = Outcome(64, 1, 1.0, 94, 2960, 9000, 120.9, shares, 0.9, 0.2, 0.005)
    cells = row(outcome)
    names = ("batches", "scoring", "prefixes", "waiting")
    assert [cells[name] for name in names] == ["16 of 1", "86.1%", "5.2%", "8.7%"]
    assert missed(outcome) == []
    idle = replace(outcome, shares=replace(shares, scoring=0.7), driver_ms=3.5)
    assert missed(idle) == [
        "64 evaluators score 70.0% of the time, below 85%",
        "3.50 ms of the driver for a task, above 1",
    ]
