"""One search from start to finish: evaluators up, dense scores, the loop, then summary, pictures
and MLflow.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import Any

from omegaconf import OmegaConf

from pipelines.cli.console import WorkProgress, show_result
from pipelines.engines import remove_leftovers
from pipelines.plan.against_actual import plan_vs_actual
from pipelines.prune.allocate import find_allocation
from pipelines.prune.driver import run_search
from pipelines.prune.job import PruneJob
from pipelines.prune.measured_latency import is_measured, measured_latency
from pipelines.prune.observers import (
    Observers,
    SearchProgress,
    SearchStatus,
    SearchTracking,
)
from pipelines.prune.samples import samples
from pipelines.prune.scorer import Scorer
from pipelines.prune.summary import result_tables, search_summary, write_results
from pipelines.prune.system_metrics import system_metrics
from pipelines.runs.arithmetic import ARITHMETIC, claim_arithmetic
from pipelines.runs.files import (
    ALLOCATION,
    AUTHORS_CONFIG,
    BLOCK_INFLUENCE,
    CONFIG,
    LATENCY,
    SHAPE,
    SHAPE_PICTURE,
    SUMMARY,
    TRAJECTORY,
    TRAJECTORY_PICTURE,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import Journal
from pipelines.runs.order import ORDER, claim_order
from pipelines.runs.resume import saved_form
from pipelines.status.status_file import Heartbeat
from pipelines.store.scores import Context, ScoreStore
from pipelines.tracking.tracker import Tracker
from pruning.calibration.token_sets import part_name
from pruning.errors import TargetNotReached
from pruning.importance.channel_order import ChannelOrder
from pruning.models.display_name import display_name
from pruning.scoring.score import ShapeScore
from pruning.search.allocation_path import AllocationStrategy
from pruning.search.strategy import Measured, Search
from pruning.shape import ModelShape
from workers.pool.protocol import Pool

log = logging.getLogger(__name__)

ARTIFACTS = (
    TRAJECTORY,
    SHAPE,
    AUTHORS_CONFIG,
    SUMMARY,
    CONFIG,
    TRAJECTORY_PICTURE,
    SHAPE_PICTURE,
    BLOCK_INFLUENCE,
    ALLOCATION,
    LATENCY,
)
"""What MLflow gets, as far as it is there: not every strategy writes every file."""


class SearchRun:
    """A search in its folder.

    Args:
        record: what `run.json` says of it.
        pool: evaluators that it shares with other searches; None: it has its own.
        parent: the MLflow run of the sweep that it is a point of.
    """

    def __init__(
        self,
        job: PruneJob,
        store: ScoreStore,
        folder: RunFolder,
        record: dict[str, Any],
        *,
        pool: Pool | None = None,
        parent: Tracker | None = None,
    ) -> None:
        self.job, self.store, self.folder, self._pool = job, store, folder, pool
        self.journal = Journal(folder.path / TRAJECTORY)
        self.search: Search
        if not job.strategy.needs:  # else evaluators measure first
            self._begin({})
        self.tracking = SearchTracking(job, folder, record, parent)
        self.heartbeat = Heartbeat(folder, target_ratio=job.config.search.target_ratio)
        for line in self.journal.lines[-1:]:
            self.heartbeat.beat_step(line)

    def go(self) -> dict[str, Any]:
        """Runs until the target is met; returns the summary.

        Raises:
            TargetNotReached: it cannot be met. Everything up to there is written first.
        """
        started = time.monotonic()
        remove_leftovers(self.folder.path)
        with self.heartbeat.running():
            self.folder.write(CONFIG, OmegaConf.to_yaml(saved_form(self.job.config)))
            if self.job.timing is not None:
                self.folder.write_with(LATENCY, self.job.timing.table.save)
            _announce(self.job, self.folder, self.journal)
            with self.tracking.running():
                summary, problem = self._measured(started)
                if self._is_timed:
                    summary["latency"] |= measured_latency(
                        self.job, self.search.shape, self._order, self.folder.path
                    )
                write_results(self.folder, self.job, self.search, self.journal.lines, summary)
                written = [name for name in ARTIFACTS if (self.folder.path / name).exists()]
                tracked = self.tracking.finish(
                    summary, self.journal.lines, [self.folder.path / name for name in written]
                )
            show_result(
                result_tables(summary),
                f"everything is in {self.folder.path}: {', '.join(written)}",
                *((self.tracking.tracker.link(),) if tracked else ()),
                *self.tracking.tracker.left_out(),
            )
            if problem is not None:
                raise problem
        return summary

    def _begin(self, measured: Measured) -> None:
        """The search, where its journal ends."""
        self.search = self.job.strategy.search(self.job.accounting, measured)
        self.journal.replay(self.search)

    def _measured(self, started: float) -> tuple[dict[str, Any], TargetNotReached | None]:
        """The search with its evaluators: the summary, and what it could not do."""
        job = self.job
        with (
            job.pool() if self._pool is None else nullcontext(self._pool) as pool,
            WorkProgress("candidates") as bar,
        ):
            observers = Observers(
                self.tracking,
                SearchProgress(bar),
                SearchStatus(self.heartbeat, bar, self.tracking.tracker),
                *system_metrics(self.tracking),
            )
            for _ in pool.wait():
                observers.waiting(pool)
            spans = claim_arithmetic(
                self.folder,
                pool.arithmetic,
                num_steps=len(self.journal.lines),
                accept=job.config.accept_other_arithmetic,
            )
            self._is_timed = self._pool is None and is_measured(job, pool.arithmetic.to_json())
            self._order = order = job.channel_order(pool, self.folder)
            claim_order(self.folder, order.fingerprint, num_steps=len(self.journal.lines))
            pool.set_order(order)
            scorer = self._scorer(pool, order, observers)
            if job.strategy.needs:
                self._begin(self._dense_measured(pool, order, scorer, observers))
            dense = self._score_all(scorer, job.accounting.dense)
            observers.started(
                self.search,
                {name: score.nll for name, score in dense.items()},
                self.journal.lines,
            )
            problem = self._search(scorer, observers)
            if job.timing is not None:
                job.timing.warn_of(self.search.shape)  # later rounds go on to other sizes
            pruned = self._score_all(scorer, self.search.shape)
            texts = samples(
                job, pool, order, self.search.shape, self.folder, lambda: observers.waiting(pool)
            )
            observers.measured(pool)
            summary = search_summary(
                job,
                self.search,
                scorer,
                self.journal.lines,
                dense=dense,
                pruned=pruned,
                seconds=time.monotonic() - started,
                problem=problem,
                output_dir=str(self.folder.path),
                mlflow_run_id=self.tracking.tracker.run_id,
            )
        summary |= texts
        summary[ARITHMETIC] = spans
        summary |= plan_vs_actual(
            job.config, job.accounting, job.settings, self.journal.lines, summary
        )
        return summary, problem

    def _dense_measured(
        self, pool: Pool, order: ChannelOrder, scorer: Scorer, observers: Observers
    ) -> Measured:
        """What the strategy needs to know before its first step."""
        job, found = self.job, Measured()
        if "influence" in job.strategy.needs:
            found["influence"] = job.influence(pool, self.folder, order)
        if isinstance(job.strategy, AllocationStrategy):
            found["allocation"] = find_allocation(
                job.strategy.measuring(job.accounting),
                scorer,
                self.folder,
                on_wave=observers.measuring,
            )
        return found

    def _scorer(self, pool: Pool, order: ChannelOrder, observers: Observers) -> Scorer:
        context = Context(
            model=self.job.fingerprint,
            tokens="",
            order=order.fingerprint,
            dtype=self.job.dtype,
            batch_size=self.job.config.calibration.batch_size,
            arithmetic=pool.arithmetic,
        )

        def report(candidates: float, *, scored: bool) -> None:
            observers.scored(pool, scorer.evaluations, candidates, scored=scored)

        scorer = Scorer(pool, self.store, self.job.calibration, context, report, self.job.set_keys)
        scorer.deviating.update(self.journal.deviating())  # of earlier processes
        return scorer

    def _search(self, scorer: Scorer, observers: Observers) -> TargetNotReached | None:
        """The loop. A target that cannot be met ends it like one that is met, and is returned."""
        try:
            run_search(
                self.search,
                scorer,
                self.journal,
                accounting=self.job.accounting,
                context_length=self.job.config.calibration.sequence_length,
                on_step=lambda line: observers.stepped(self.search, line),
                targets=self.job.settings.targets,
                computed_with={
                    ORDER: scorer.order,
                    ARITHMETIC: scorer.pool.arithmetic.digest,
                },
            )
        except TargetNotReached as error:
            return error
        return None

    def _score_all(self, scorer: Scorer, shape: ModelShape) -> dict[str, ShapeScore]:
        """Of a mixture, also on the held-out text of each source apart."""
        found: dict[str, ShapeScore] = {}
        for name, tokens in self.job.calibration.sets().items():
            found[name] = score = scorer.score_shape(name, shape)
            if name == "heldout":
                found |= {
                    part_name(name, source): score.of_sequences(sequences)
                    for source, sequences in tokens.positions().items()
                }
        return found


def _announce(job: PruneJob, folder: RunFolder, journal: Journal) -> None:
    if not job.accounting.family.prunes_widths:
        log.info(
            "architecture %s is outside the registry of families: it is pruned by whole "
            "blocks only",
            job.accounting.family.model_type,
        )
    log.info(
        "%s: %s parameters, %s; %s",
        display_name(job.config.model.path),
        f"{job.accounting.num_dense_parameters:,}",
        job.dtype,
        folder.path,
    )
    sets = ", ".join(
        f"{name} {tokens.num_sequences} x {tokens.sequence_length}"
        for name, tokens in job.calibration.sets().items()
    )
    calibration = job.config.calibration
    of_mixture = f" of {calibration.mixture()}" if calibration.sources else ""
    log.info("calibration %s%s: %s tokens", calibration.source, of_mixture, sets)
    for line in journal.lines[-1:]:
        log.info("going on after step %d, ratio %.2f %%", line["step"], 100 * line["ratio"])
