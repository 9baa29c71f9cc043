"""Thousands of steps through one pool, one store, one MLflow run and one heartbeat: what must stay
flat does, what must grow grows with the steps.

`make soak` prints the samples. Searches of some nine hundred steps each follow one another, since
one search keeps its own steps in memory on purpose (a few kilobytes each); with a model's name of
its own for each, so that none finds the scores of the one before.
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
from pipelines.tracking.tracker import TokenDataset, Tracker
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.search.greedy import GreedySearch
from pruning.search.stages import make_stages
from tests.conftest import tiny_config, tiny_model, tokens
from tests.soak.samples import MB, Sampler
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, OrderTask

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2 * 3600)]

SAMPLE_EVERY = 100
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
    "target_ratio": 0.55,
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
    """Everything that lives as long as the run."""

    def __init__(self, folder: Path, spec: EvaluatorSpec, pool: RayPool, store: ScoreStore) -> None:
        self.folder, self.spec, self.pool, self.store = folder, spec, pool, store
        self.accounting = Accounting(spec.checkpoint.config())
        self.calibration = Calibration(
            TokenSet(spec.token_sets["block"]), TokenSet(spec.token_sets["width"]), None
        )
        self.heartbeat = Heartbeat(
            RunFolder(str(folder / "run")), target_ratio=SETTINGS["target_ratio"]
        )
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
        with self.heartbeat.life():
            found = [self.search(number) for number in range(num_searches)]
        assert self.tracker.finish(
            succeeded=True, artifacts=[self.folder / "search-0/trajectory.jsonl"], timeout_s=300
        )
        return found

    def search(self, number: int) -> str:
        folder = self.folder / f"search-{number}"
        folder.mkdir()
        search, journal = (
            GreedySearch(self.accounting, make_stages(self.accounting, **SETTINGS)),
            Journal(folder / "trajectory.jsonl"),
        )
        spec = self.spec
        context = Context(
            f"soak-{number}",
            "",
            self.order.fingerprint,
            spec.dtype,
            self.pool.device,
            spec.batch_size,
            spec.num_threads,
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
        return hashlib.sha256(
            json.dumps([_untimed(line) for line in journal.lines]).encode()
        ).hexdigest()

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.steps += 1
        self.tracker.log_metrics(step_metrics(line), step=self.steps, timestamp=line["timestamp"])
        self.heartbeat.beat(
            **{name: line[name] for name in ("step", "stage", "ratio", "perplexity")}
        )
        if self.steps % SAMPLE_EVERY == 0:
            actors = [state.info.pid for state in self.pool.states() if state.info]
            sample = self.sampler.take(self.steps, actors, self.tracker._queue.qsize())
            sys.stdout.write(
                f"step {sample.step}, {sample.seconds:.0f} s: driver "
                f"{sample.driver_uss / MB:.1f} MB\n"
            )


def test_nothing_grows_that_should_not(
    local_cluster: LocalMachine, spec: EvaluatorSpec, tmp_path: Path
) -> None:
    folder, num_searches = tmp_path / "soak", int(os.environ.get("SOAK_SEARCHES", "4"))
    with (
        ScoreStore(f"sqlite:///{tmp_path}/soak/scores.db") as store,
        RayPool(spec, Placement(2, num_gpus=0)) as pool,
    ):
        pool.describe()
        soak = Soak(folder, spec, pool, store)
        digests = soak.run(num_searches)
        assert not pool.faults.counts
        busy = [state.num_tasks for state in pool.states()]
    sampler, steps = soak.sampler, soak.steps
    figures = {
        name: sampler.line(name)
        for name in (
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
    }
    figures |= {
        f"actor_{part}_{kind}": sampler.line(f"actors_{kind}", part=part)
        for part in range(2)
        for kind in ("rss", "uss")
    }
    sys.stdout.write(
        f"\n{sampler.table()}\n{steps} steps in {num_searches} searches, {soak.scored} "
        f"evaluations, tasks of each evaluator {busy}\n"
    )
    for name, line in figures.items():
        sys.stdout.write(
            f"{name:<18} {1000 * line.slope:>12,.1f} per 1000 steps, R2 {line.r2:.4f}\n"
        )

    assert len(set(digests)) == 1, "the searches differ"
    with closing(sqlite3.connect(folder / "scores.db")) as scores:
        assert scores.execute("select count(*) from scores").fetchone()[0] == soak.scored
    with closing(sqlite3.connect(folder / "mlflow.db")) as mlflow:
        assert (
            mlflow.execute(
                "select count(*) from metrics where key = 'prune/perplexity'"
            ).fetchone()[0]
            == steps
        )
    for name, line in figures.items():
        if name.endswith(
            "rss"
        ):  # `uss` jumps by 17 MB when another process on the machine maps the same libraries
            assert line.slope < MEMORY_BYTES_PER_STEP, (
                f"{name} grows by {line.slope:.0f} bytes a step"
            )
    assert abs(figures["blocks"].slope) < BLOCKS_PER_STEP
    for name in ("store", "journal", "mlflow"):
        assert figures[name].r2 > 0.99
    last = sampler.samples[len(sampler.samples) // 4 :]
    assert max(sample.wal for sample in sampler.samples) < 16 * MB, (
        "the write-ahead log is not written back"
    )
    assert (
        max(sample.file_descriptors for sample in last)
        - min(sample.file_descriptors for sample in last)
        <= 2
    )
    assert max(sample.threads for sample in last) - min(sample.threads for sample in last) <= 2
    assert min(busy) > steps / 20, "one evaluator did nothing"


def _untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("seconds", "timestamp")}
