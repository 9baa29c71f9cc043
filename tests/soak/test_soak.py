"""Thousands of steps through one pool, one store, one MLflow run and one heartbeat: what must stay
flat does, what must grow grows with the steps.

`make soak` prints the samples; `make short-tiers` has shorter searches. Searches of some nine
hundred steps each follow one another, since one search keeps its own steps in memory on purpose (a
few kilobytes each); with a model's name of its own for each, so that none finds the scores of the
one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import Journal
from pipelines.status.status_file import Heartbeat
from pipelines.store.scores import Context, ScoreStore
from pipelines.tracking.metrics import step_metrics
from pipelines.tracking.token_dataset import TokenDataset
from pipelines.tracking.tracker import Tracker
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from tests.conftest import tiny_config, tiny_model, tokens
from tests.soak.samples import MB, Sampler
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, OrderTask

FIELDS = (
    "driver_rss",
    "driver_uss",
    "store",
    "journal",
    "mlflow",
    "file_descriptors",
    "threads",
    "blocks",
    "seconds",
)
MEMORY_BYTES_PER_STEP = 2 * MB / 1000
"""Of resident memory.

A journal line that was kept by mistake would be 7 kB a step; 0.3 to 0.5 kB were measured, which end
after some 2,000 steps.
"""
BLOCKS_PER_STEP = 15
"""Pieces of memory given out by Python: a journal line that was kept would be 55 a step.

What a search keeps until it ends makes a saw of 45,000, through which a line over three teeth may
rise by 6.
"""
SETTINGS: dict[str, Any] = {
    "distribution": [10, 80, 10],
    "mlp_group_channels": 1,
    "head_group_channels": 16,
}


@pytest.fixture
def spec(tmp_path: Path) -> EvaluatorSpec:
    """Eight layers with many channels to take one by one."""
    config = tiny_config(
        "llama", attention_bias=False, mlp_bias=False, num_hidden_layers=8, intermediate_size=192
    )
    tiny_model(config).save_pretrained(tmp_path / "model")
    ids = tokens(4, 24).numpy().astype(np.int64)
    return EvaluatorSpec(
        Checkpoint(tmp_path / "model"), "float32", {"block": ids, "width": ids}, batch_size=2
    )


class Soak:
    """Everything that lives as long as the run.

    Args:
        sample_every: steps; None: at the end of each search.
    """

    def __init__(
        self,
        folder: Path,
        spec: EvaluatorSpec,
        pool: RayPool,
        store: ScoreStore,
        target_ratio: float,
        sample_every: int | None,
    ) -> None:
        self.folder, self.spec, self.pool, self.store = folder, spec, pool, store
        self.target_ratio, self.sample_every = target_ratio, sample_every
        self.accounting = Accounting(spec.checkpoint.config())
        self.calibration = Calibration(
            TokenSet(spec.token_sets["block"]), TokenSet(spec.token_sets["width"]), None
        )
        self.heartbeat = Heartbeat(RunFolder(str(folder / "run")), target_ratio=target_ratio)
        self.tracker = Tracker(
            f"sqlite:///{folder}/mlflow.db", "soak", "soak", time.time(), None, lambda run_id: None
        )
        self.sampler = Sampler(folder / "scores.db", folder, folder / "mlflow.db")
        self.steps = 0
        self.scored = 0
        [self.order] = [
            result
            for answers in pool.run([OrderTask("activation")])
            for _, result in answers
            if isinstance(result, ChannelOrder)
        ]
        pool.set_order(self.order)

    def run(self, num_searches: int) -> list[str]:
        """A digest of each search's trajectory: the lines themselves would be what grows."""
        dataset = TokenDataset("tokens", self.calibration.block.fingerprint, {}, 4, 24)
        self.tracker.start({"searches": num_searches}, {"kind": "soak"}, {"block": dataset})
        with self.heartbeat.running():
            found = [self.search(number) for number in range(num_searches)]
        assert self.tracker.finish(
            succeeded=True, artifacts=[self.folder / "search-0/trajectory.jsonl"], timeout_s=300
        )
        return found

    def search(self, number: int) -> str:
        folder = self.folder / f"search-{number}"
        folder.mkdir()
        settings = SearchSettings.resolved(
            self.accounting.geometry, target_ratio=self.target_ratio, **SETTINGS
        )
        search, journal = (
            GreedySearch(self.accounting, settings),
            Journal(folder / "trajectory.jsonl"),
        )
        spec = self.spec
        context = Context(
            model=f"soak-{number}",
            tokens="",
            order=self.order.fingerprint,
            dtype=spec.dtype,
            batch_size=spec.batch_size,
            arithmetic=self.pool.arithmetic,
        )

        def evaluated(candidates: float, *, scored: bool) -> None:
            self.heartbeat.beat(
                self.pool, tracking=self.tracker.state(), evaluations=scorer.evaluations
            )

        scorer = Scorer(self.pool, self.store, self.calibration, context, evaluated)
        run_search(
            search,
            scorer,
            journal,
            accounting=self.accounting,
            context_length=24,
            on_step=self.stepped,
        )
        self.scored += scorer.num_scored
        if self.sample_every is None:
            self.sample()
        return hashlib.sha256(
            json.dumps([_untimed(line) for line in journal.lines]).encode()
        ).hexdigest()

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.steps += 1
        self.tracker.log_metrics(step_metrics(line), step=self.steps, timestamp=line["timestamp"])
        self.heartbeat.beat(
            **{name: line[name] for name in ("step", "stage", "ratio", "perplexity")}
        )
        if self.sample_every is not None and self.steps % self.sample_every == 0:
            self.sample()

    def sample(self) -> None:
        actors = [state.info.pid for state in self.pool.states() if state.info]
        sample = self.sampler.take(self.steps, actors, self.tracker.num_waiting)
        sys.stdout.write(
            f"step {sample.step}, {sample.seconds:.0f} s: driver {sample.driver_uss / MB:.1f} MB\n"
        )


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
def test_nothing_grows_that_should_not(
    local_cluster: LocalMachine, spec: EvaluatorSpec, tmp_path: Path
) -> None:
    num_searches = int(os.environ.get("SOAK_SEARCHES", "4"))
    soak = soaked(tmp_path / "soak", spec, num_searches, target_ratio=0.55, sample_every=100)
    check(soak, MEMORY_BYTES_PER_STEP, straight=0.99)


@pytest.mark.short_tier
@pytest.mark.timeout(1200)
def test_nothing_grows_from_search_to_search(
    local_cluster: LocalMachine, spec: EvaluatorSpec, tmp_path: Path
) -> None:
    """Short searches, compared where they end: what a search keeps until then does not count.

    Resident memory still rises by 7 kB a step so early, while Python's own is flat.
    """
    soak = soaked(tmp_path / "soak", spec, 6, target_ratio=0.15, sample_every=None)
    assert len(soak.sampler.samples) == 6
    check(soak, 10 * MEMORY_BYTES_PER_STEP, straight=0.95)


def soaked(
    folder: Path,
    spec: EvaluatorSpec,
    num_searches: int,
    *,
    target_ratio: float,
    sample_every: int | None,
) -> Soak:
    """After so many equal searches."""
    with (
        ScoreStore(f"sqlite:///{folder}/scores.db") as store,
        RayPool(spec, Placement(2, num_gpus=0)) as pool,
    ):
        pool.describe()
        soak = Soak(folder, spec, pool, store, target_ratio, sample_every)
        digests = soak.run(num_searches)
        assert not pool.faults.counts
        busy = [state.num_tasks for state in pool.states()]
    sys.stdout.write(
        f"\n{soak.sampler.table()}\n{soak.steps} steps in {num_searches} searches, {soak.scored} "
        f"evaluations, tasks of each evaluator {busy}\n"
    )
    assert len(set(digests)) == 1, "the searches differ"
    assert min(busy) > soak.steps / 20, "one evaluator did nothing"
    return soak


def check(soak: Soak, memory_bytes_per_step: float, *, straight: float) -> None:
    """Nothing is lost, what must grow grows with the steps, the rest is flat.

    Args:
        straight: R2 of what must grow, at least.
    """
    assert _count(soak.folder / "scores.db", "scores") == soak.scored
    logged = _count(soak.folder / "mlflow.db", "metrics where key = 'prune/perplexity'")
    assert logged == soak.steps
    sampler = soak.sampler
    lines = {name: sampler.line(name) for name in FIELDS} | {
        f"actor_{part}_{kind}": sampler.line(f"actors_{kind}", part=part)
        for part in range(2)
        for kind in ("rss", "uss")
    }
    for name, line in lines.items():
        sys.stdout.write(
            f"{name:<18} {1000 * line.slope:>12,.1f} per 1000 steps, R2 {line.r2:.4f}\n"
        )
    # `uss` jumps by 17 MB when another process on the machine maps the same libraries
    for name in (name for name in lines if name.endswith("rss")):
        slope = lines[name].slope
        assert slope < memory_bytes_per_step, f"{name} grows by {slope:.0f} bytes a step"
    assert abs(lines["blocks"].slope) < BLOCKS_PER_STEP
    for name in ("store", "journal", "mlflow"):
        assert lines[name].r2 > straight, name
    assert max(sample.wal for sample in sampler.samples) < 16 * MB, (
        "the write-ahead log is not written back"
    )
    last = sampler.samples[len(sampler.samples) // 4 :]
    for name in ("file_descriptors", "threads"):
        values = [getattr(sample, name) for sample in last]
        assert max(values) - min(values) <= 2, f"{name}: {values}"


def _count(path: Path, rows: str) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute(f"select count(*) from {rows}").fetchone()[0])


def _untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("seconds", "timestamp")}
