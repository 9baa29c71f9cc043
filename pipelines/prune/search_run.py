"""One search from start to finish: evaluators up, dense scores, the loop, then summary, pictures
and MLflow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

from omegaconf import OmegaConf

from pipelines.cli.console import WorkProgress, console, duration
from pipelines.config.redaction import masked_url
from pipelines.plan.against_actual import beside_plan
from pipelines.prune.driver import run_search
from pipelines.prune.job import PruneJob
from pipelines.prune.scorer import Scorer
from pipelines.prune.summary import costs, table
from pipelines.runs.files import (
    AUTHORS_CONFIG,
    BLOCK_INFLUENCE,
    CONFIG,
    RUN,
    SHAPE,
    SHAPE_PICTURE,
    SUMMARY,
    TRAJECTORY,
    TRAJECTORY_PICTURE,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import Journal
from pipelines.runs.pictures import plot_shape, plot_trajectory
from pipelines.runs.provenance import git_revision, versions
from pipelines.runs.resume import saved_form
from pipelines.status.status_file import Heartbeat
from pipelines.store.scores import Context, ScoreStore
from pipelines.tracking.metrics import (
    dense_metrics,
    result_metrics,
    search_params,
    search_tags,
    step_metrics,
)
from pipelines.tracking.tracker import TokenDataset, Tracker
from pruning.calibration.token_sets import SetName
from pruning.canonical_json import dump_json
from pruning.errors import TargetNotReached
from pruning.export.authors_config import write_authors_config
from pruning.importance.channel_order import ChannelOrder
from pruning.models.display_name import display_name
from pruning.scoring.nll import perplexity
from pruning.search.stages import token_set_of
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
)
"""What MLflow gets, as far as it is there: not every strategy writes every file."""

_Scores = dict[SetName, float]


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
        self.job, self.store, self.folder, self.record, self._pool = (
            job,
            store,
            folder,
            record,
            pool,
        )
        self.journal = Journal(folder.path / TRAJECTORY)
        self.search: Search
        if not job.strategy.needs:  # else evaluators measure first
            self._begin({})
        self.tracker = Tracker(
            uri=job.config.tracking.uri,
            experiment=job.config.tracking.experiment,
            run_name=(
                f"{self.model_name} {job.config.search.target_ratio:.0%} {job.strategy.label}"
            ),
            started=record["started"],
            run_id=record.get("mlflow_run_id"),
            on_run_id=lambda run_id: self._record(mlflow_run_id=run_id),
            parent=parent,
        )
        self.heartbeat = Heartbeat(folder, target_ratio=job.config.search.target_ratio)
        for line in self.journal.lines[-1:]:
            self._beat_step(line)

    @property
    def model_name(self) -> str:
        return display_name(self.job.config.model.path)

    def go(self) -> dict[str, Any]:
        """Runs until the target is met; returns the summary.

        Raises:
            TargetNotReached: it cannot be met. Everything up to there is written first.
        """
        with self.heartbeat.life():
            return self._go()

    def _go(self) -> dict[str, Any]:
        started = time.monotonic()
        self.folder.write(CONFIG, OmegaConf.to_yaml(saved_form(self.job.config)))
        self._announce()
        self.tracker.start(self._params(), self._tags(), self._datasets())
        try:
            with (
                self.job.pool() if self._pool is None else nullcontext(self._pool) as pool,
                WorkProgress("candidates") as progress,
            ):
                for _ in pool.wait():
                    self.heartbeat.beat(pool)
                order = self.job.channel_order(pool, self.folder)
                pool.set_order(order)
                if self.job.strategy.needs:
                    self._begin(self.job.measured(pool, self.folder, order))
                scorer = self._scorer(pool, order, progress)
                dense = self._score_all(scorer, self.job.accounting.dense)
                self._track_past(dense)
                problem = self._search(scorer, progress, dense)
                pruned = self._score_all(scorer, self.search.shape)
                self.heartbeat.beat(pool, now=True)
                summary = self._summary(dense, pruned, scorer, time.monotonic() - started, problem)
                summary |= beside_plan(
                    self.job.config, self.job.accounting, self.journal.lines, summary
                )
            self._write_results(summary)
            complete = self._track_result(summary)
        except BaseException:
            self.tracker.finish(succeeded=False, artifacts=(), timeout_s=5)
            raise
        self._show(summary, complete)
        if problem is not None:
            raise problem
        return summary

    def _begin(self, measured: Measured) -> None:
        """The search, where its journal ends."""
        self.search = self.job.strategy.search(self.job.accounting, measured)
        self.journal.replay(self.search)

    def _scorer(self, pool: Pool, order: ChannelOrder, progress: WorkProgress) -> Scorer:
        context = Context(
            model=self.job.fingerprint,
            tokens="",
            order=order.fingerprint,
            dtype=self.job.dtype,
            device=pool.device,
            batch_size=self.job.config.calibration.batch_size,
            num_threads=self.job.config.cluster.num_cpus_per_evaluator,
        )

        def report(candidates: float, *, scored: bool) -> None:
            progress.advance(candidates, scored=scored)
            self.heartbeat.beat(
                pool,
                rate=round(progress.rate, 3),
                left_s=progress.left_s,
                tracking=self.tracker.state(),
                evaluations=scorer.evaluations,
            )

        scorer = Scorer(pool, self.store, self.job.calibration, context, report, self.job.set_keys)
        return scorer

    def _search(
        self, scorer: Scorer, progress: WorkProgress, dense: _Scores
    ) -> TargetNotReached | None:
        """The loop. A target that cannot be met ends it like one that is met, and is returned."""
        # A change of perplexity is one on the same calibration set, which the stages do not share.
        previous: dict[str, float | None] = {"block": perplexity(dense["block"])}
        for line in self.journal.lines[-1:]:
            previous = {token_set_of(line["stage"]): line["perplexity"]}

        def report(line: Mapping[str, Any]) -> None:
            self.tracker.log_metrics(
                step_metrics(line), step=line["step"], timestamp=line["timestamp"]
            )
            self._beat_step(line)
            stage = self.search.stage
            progress.expect(stage.name if stage else "done", self.search.expected_evaluations())
            before = previous.get(token_set_of(line["stage"]))
            change = (
                f" ({line['perplexity'] - before:+.3f})"
                if before is not None and line["perplexity"] is not None
                else ""
            )
            previous.clear()
            previous[token_set_of(line["stage"])] = line["perplexity"]
            log.info(
                "step %d: cut %s; perplexity %s%s, ratio %.2f %%, %.1f s, %s left",
                line["step"],
                self.search.steps[-1].removal,
                _rounded(line["perplexity"]),
                change,
                100 * line["ratio"],
                line["seconds"],
                duration(progress.left_s if stage else 0),
            )

        progress.expect(
            self.search.stage.name if self.search.stage else "done",
            self.search.expected_evaluations(),
        )
        try:
            run_search(
                self.search,
                scorer,
                self.journal,
                accounting=self.job.accounting,
                context_length=self.job.config.calibration.sequence_length,
                on_step=report,
            )
        except TargetNotReached as error:
            return error
        return None

    def _score_all(self, scorer: Scorer, shape: ModelShape) -> _Scores:
        return {
            name: scorer.score(name, shape, [None])[None].nll
            for name in self.job.calibration.sets()
        }

    def _summary(
        self,
        dense: _Scores,
        pruned: _Scores,
        scorer: Scorer,
        seconds: float,
        problem: TargetNotReached | None,
    ) -> dict[str, Any]:
        config, context_length = self.job.config, self.job.config.calibration.sequence_length
        return {
            "status": "target reached" if problem is None else str(problem),
            "model": self.model_name,
            "strategy": self.job.strategy.label,
            "target_ratio": config.search.target_ratio,
            "ratio": self.search.ratio,
            "steps": [step.stage for step in self.search.steps],
            "perplexity": {
                name: {"dense": perplexity(dense[name]), "pruned": perplexity(pruned[name])}
                for name in sorted(dense)
            },
            **costs(
                self.job.accounting,
                self.search.shape,
                context_length=context_length,
                dtype=self.job.dtype,
            ),
            "context_length": context_length,
            "calibration": {
                name: {
                    "num_sequences": tokens.num_sequences,
                    "sequence_length": tokens.sequence_length,
                    "fingerprint": tokens.fingerprint,
                }
                for name, tokens in self.job.calibration.sets().items()
            },
            "dtype": self.job.dtype,
            "evaluations": {
                "candidates": sum(len(step.candidates) for step in self.search.steps),
                **scorer.evaluations,
            },
            "num_evaluators": scorer.pool.num_evaluators,
            **scorer.pool.faults.counters(),
            "seconds": round(seconds, 1),
            "shape": self.search.shape.text,
            "output_dir": str(self.folder.path),
            "tracking": {"uri": masked_url(config.tracking.uri), "run_id": self.tracker.run_id},
            "identity": self.job.identity(),
            "versions": versions(),
            "git_revision": git_revision(),
        }

    def _write_results(self, summary: Mapping[str, Any]) -> None:
        geometry, lines = self.job.accounting.geometry, self.journal.lines
        removals = [step.removal for step in self.search.steps]
        authors = write_authors_config(
            self.search.shape,
            geometry.dense,
            removals,
            channels_per_kv_head=geometry.channels_per_kv_head,
        )
        self.folder.write(SHAPE, dump_json(self.search.shape.to_json()))
        self.folder.write(AUTHORS_CONFIG, dump_json(authors))
        self.folder.write(SUMMARY, dump_json(summary))
        title = f"{summary['model']}, {summary['ratio']:.1%} removed"
        dense = {name: pair["dense"] for name, pair in summary["perplexity"].items()}
        self.folder.write_with(
            TRAJECTORY_PICTURE, lambda path: plot_trajectory(lines, dense, title, path)
        )
        self.folder.write_with(
            SHAPE_PICTURE, lambda path: plot_shape(self.search.shape, geometry, lines, title, path)
        )

    def _announce(self) -> None:
        job, calibration = self.job, self.job.calibration
        if not job.accounting.family.prunes_widths:
            log.info(
                "architecture %s is outside the registry of families: it is pruned by whole "
                "blocks only",
                job.accounting.family.model_type,
            )
        log.info(
            "%s: %s parameters, %s; %s",
            self.model_name,
            f"{job.accounting.num_dense_parameters:,}",
            job.dtype,
            self.folder.path,
        )
        sets = ", ".join(
            f"{name} {tokens.num_sequences} x {tokens.sequence_length}"
            for name, tokens in calibration.sets().items()
        )
        log.info("calibration %s: %s tokens", job.config.calibration.source, sets)
        for line in self.journal.lines[-1:]:
            log.info("going on after step %d, ratio %.2f %%", line["step"], 100 * line["ratio"])

    def _track_past(self, dense: _Scores) -> None:
        """The dense model as step 0, and the steps of earlier processes: MLflow stores a point once
        however often it is sent.
        """
        accounting = self.job.accounting
        zero = dense_metrics(
            nll=dense["block"],
            perplexity=perplexity(dense["block"]),
            num_parameters=accounting.num_dense_parameters,
            flops_per_token=accounting.flops_per_token(
                accounting.dense, context_length=self.job.config.calibration.sequence_length
            ),
        )
        self.tracker.log_metrics(zero, step=0, timestamp=self.record["started"])
        for line in self.journal.lines:
            self.tracker.log_metrics(
                step_metrics(line), step=line["step"], timestamp=line["timestamp"]
            )

    def _track_result(self, summary: Mapping[str, Any]) -> bool:
        ended = (
            self.journal.lines[-1]["timestamp"] if self.journal.lines else self.record["started"]
        )
        self.tracker.log_metrics(
            result_metrics(summary), step=len(self.search.steps), timestamp=ended
        )
        succeeded = summary["status"] == "target reached"
        return self.tracker.finish(
            succeeded=succeeded, artifacts=[self.folder.path / name for name in self._written()]
        )

    def _written(self) -> list[str]:
        return [name for name in ARTIFACTS if (self.folder.path / name).exists()]

    def _params(self) -> dict[str, Any]:
        options = cast("dict[str, Any]", OmegaConf.to_container(saved_form(self.job.config)))
        return search_params(options, self.job.identity(), str(self.folder.path))

    def _tags(self) -> dict[str, str]:
        sets = self.job.calibration.sets()
        return search_tags(
            model=self.job.fingerprint,
            model_type=self.job.accounting.family.model_type,
            calibration={name: tokens.fingerprint for name, tokens in sets.items()},
            versions=versions(),
            revision=git_revision(),
        )

    def _datasets(self) -> dict[str, TokenDataset]:
        calibration = self.job.config.calibration
        source = {"source": calibration.source, "path": calibration.path, "seed": calibration.seed}
        return {
            name: TokenDataset(
                f"{calibration.source}-{name}",
                tokens.fingerprint,
                source,
                tokens.num_sequences,
                tokens.sequence_length,
            )
            for name, tokens in self.job.calibration.sets().items()
        }

    def _beat_step(self, line: Mapping[str, Any]) -> None:
        self.heartbeat.beat(
            **{name: line[name] for name in ("step", "stage", "ratio", "perplexity")}
        )

    def _record(self, **fields: Any) -> None:
        self.record |= fields
        self.folder.write(RUN, dump_json(self.record))

    def _show(self, summary: Mapping[str, Any], tracked: bool) -> None:
        console.print()
        console.print(table(summary))
        console.print(
            f"everything is in {self.folder.path}: {', '.join(self._written())}",
            markup=False,
            soft_wrap=True,
        )
        if tracked:
            console.print(self.tracker.link(), markup=False, soft_wrap=True)


def _rounded(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
