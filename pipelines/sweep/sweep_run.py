"""One sweep from start to finish: every point on one pool of evaluators, then the table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from pipelines.cli.commands import command_line
from pipelines.cli.console import log_to, show_result
from pipelines.config.grid import points_of
from pipelines.config.groups import EvaluationConfig
from pipelines.config.overrides import as_override
from pipelines.config.prune import PruneConfig
from pipelines.config.redaction import masked_url
from pipelines.config.sweep import SweepConfig
from pipelines.errors import Failed
from pipelines.evaluators import local_session, open_pool
from pipelines.prune.pipeline import run_post_steps
from pipelines.prune.search_run import SearchRun
from pipelines.runs.files import (
    EVALUATION,
    PRUNE_LOG,
    RUN,
    SUMMARY,
    SWEEP,
    SWEEP_LOG,
    SWEEP_PICTURE,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.pictures import plot_sweep
from pipelines.runs.provenance import git_revision, versions
from pipelines.store.scores import ScoreStore
from pipelines.sweep.point_jobs import PointJob, largest, same_evaluators, spec_of
from pipelines.sweep.table import (
    Outcome,
    outcome_of,
    recorded_run_id,
    selection_metric,
    sweep_report,
    table,
)
from pipelines.tracking.metrics import sweep_metrics, sweep_params, sweep_tags
from pipelines.tracking.tracker import Tracker
from pruning.canonical_json import dump_json
from pruning.errors import ExportError, InputError, ScoringError
from workers.pool.faults import FaultLog, WorkersLost
from workers.pool.protocol import Pool

log = logging.getLogger(__name__)


_OF_ONE_POINT = (
    InputError,
    ScoringError,
    ExportError,
    WorkersLost,
)  # anything else, such as a full disk, would fail the next point as well


class SweepRun:
    """A sweep in its folder."""

    def __init__(
        self,
        config: SweepConfig,
        jobs: Sequence[PointJob],
        folder: RunFolder,
        grid: Mapping[str, Any],
    ) -> None:
        self.config, self.jobs, self.folder, self.grid = config, jobs, folder, grid
        self.outcomes: dict[str, Outcome] = {}
        record = folder.read(RUN) or {}
        self.started = float(record["started"])
        self.tracker = Tracker(
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=f"sweep of {len(jobs)} points",
            started=self.started,
            run_id=record.get("mlflow_run_id"),
            on_run_id=lambda run_id: folder.remember(mlflow_run_id=run_id),
            again="the same command",
            is_sweep=True,
        )

    def go(self) -> dict[str, Any]:
        """All searches, then what the configuration asks for after them, then the table."""
        params = sweep_params(self.grid, str(self.folder.path))
        self.tracker.start(params, sweep_tags(versions()), {})
        try:
            with (
                ScoreStore(self.config.store.url, self.config.store.retry_s) as store,
                self._session(),
            ):
                for group in same_evaluators(self.jobs):
                    self._search_all(group, store)
                for each in self.jobs:
                    self._follow_up(each)
            report = self._write()
            for step, row in enumerate(report["points"]):
                self.tracker.log_metrics(
                    sweep_metrics(row), step=step, timestamp=self.started + step
                )
            tracked = self.tracker.finish(
                succeeded=not self._failed,
                artifacts=[self.folder.path / SWEEP, self.folder.path / SWEEP_PICTURE],
            )
            report = self._write()  # by now MLflow has said what it calls the runs
        except BaseException:
            self.tracker.finish(succeeded=False, artifacts=(), timeout_s=5)
            raise
        self._show(report, tracked)
        if self._failed:
            problems = "\n".join(
                f"point {name}: {outcome.problem}" for name, outcome in self._failed.items()
            )
            raise Failed(
                f"{problems}\n  The other points are done. To try these again: "
                + command_line("sweep", "resume=true", as_override("output_dir", self.folder.path))
            )
        return report

    @property
    def _failed(self) -> dict[str, Outcome]:
        return {
            name: outcome for name, outcome in self.outcomes.items() if outcome.problem is not None
        }

    @contextmanager
    def _session(self) -> Iterator[None]:
        """One Ray of our own for all pools, where one is needed."""
        first = self.jobs[0].job
        with local_session(first.machine, first.placement):
            yield

    def _search_all(self, group: Sequence[PointJob], store: ScoreStore) -> None:
        """The searches of one group, on one pool.

        Evaluators that were lost beyond repair are replaced by new ones for the next point.
        """
        with ExitStack() as pools:
            pool: Pool | None = None
            for each in group:
                past = self._past(each)
                if past is None:
                    log.info(
                        "point %d of %d: %s",
                        len(self.outcomes) + 1,
                        len(self.jobs),
                        each.point.name,
                    )
                    try:
                        if pool is None:
                            job = largest(group)
                            pool = pools.enter_context(
                                open_pool(
                                    self.config.cluster, job.machine, job.placement, spec_of(group)
                                )
                            )
                        pool.faults = FaultLog()
                        past = self._search(each, store, pool)
                    except _OF_ONE_POINT as error:
                        past = outcome_of(each.point, each.job, self.folder.path, str(error))
                        log.error("point %s: %s", each.point.name, error)
                        if isinstance(error, WorkersLost):
                            pools.close()
                            pool = None
                self.outcomes[each.point.name] = past
                self._write()

    def _past(self, each: PointJob) -> Outcome | None:
        """A point that an earlier process has finished."""
        path = each.job.config.output_dir
        assert path is not None
        folder = RunFolder(path)
        try:
            summary = folder.read(SUMMARY) if folder.read(RUN) is not None else None
            if summary is None or summary.get("status") != "target reached":
                return None
            folder.claim(each.job.identity())
            return outcome_of(each.point, each.job, self.folder.path, None)
        except InputError as error:
            log.warning("point %s is searched again: %s", each.point.name, error)
            return None
        finally:
            folder.release()

    def _search(self, each: PointJob, store: ScoreStore, pool: Pool) -> Outcome:
        folder = RunFolder(each.job.config.output_dir)
        try:
            record = folder.claim(each.job.identity())
            log_to(folder.path / PRUNE_LOG)
            SearchRun(each.job, store, folder, record, pool=pool, parent=self.tracker).go()
            return outcome_of(each.point, each.job, self.folder.path, None)
        finally:
            log_to(self.folder.path / SWEEP_LOG)
            folder.release()

    def _follow_up(self, each: PointJob) -> None:
        """Evaluation and export of a point, where they are asked for."""
        if self.outcomes[each.point.name].problem is not None or not (
            self.config.evaluation.wanted or self.config.export
        ):
            return
        folder = RunFolder(each.job.config.output_dir)
        job, problem = each.job, None
        try:
            if _is_evaluated(folder, job.config.evaluation):
                job = replace(job, config=_without_evaluation(job.config))
            log_to(folder.path / PRUNE_LOG)
            log.info("after the search of point %s", each.point.name)
            run_post_steps(job, folder)
        except _OF_ONE_POINT as error:
            problem = str(error)
            log.error("point %s: %s", each.point.name, error)
        finally:
            log_to(self.folder.path / SWEEP_LOG)
            folder.release()
        self.outcomes[each.point.name] = outcome_of(each.point, each.job, self.folder.path, problem)
        self._write()

    def _write(self) -> dict[str, Any]:
        """The report of all points so far, after each of them, so that there is one whatever
        happens next.
        """
        # In the order of the grid, whichever ran first.
        points = [
            self.outcomes.get(each.point.name)
            or outcome_of(each.point, each.job, self.folder.path, "not run yet")
            for each in self._by_grid()
        ]
        order = [
            self.outcomes[each.point.name] for each in self.jobs if each.point.name in self.outcomes
        ]
        report: dict[str, Any] = {
            "grid": dict(self.grid),
            **sweep_report(
                points, order, selection_metric(points), self.config.max_perplexity_ratio
            ),
            "tracking": {
                "uri": masked_url(self.config.tracking.uri),
                "run_id": self.tracker.run_id,
            },
            "versions": versions(),
            "git_revision": git_revision(),
        }
        for row in report["points"]:
            row["mlflow_run_id"] = recorded_run_id(self.folder.path / row["folder"])
        self.folder.write(SWEEP, dump_json(report))
        self.folder.write_with(SWEEP_PICTURE, lambda path: plot_sweep(report, path))
        return report

    def _by_grid(self) -> list[PointJob]:
        order = {point.name: index for index, point in enumerate(points_of(self.grid))}
        return sorted(self.jobs, key=lambda each: order[each.point.name])

    def _show(self, report: Mapping[str, Any], tracked: bool) -> None:
        show_result(
            table(report),
            f"everything is in {self.folder.path}: {SWEEP}, {SWEEP_PICTURE}, and a folder for "
            "each point",
            *((self.tracker.link(),) if tracked else ()),
            f"to compare the points: {command_line('report', str(self.folder.path))}",
        )


def _without_evaluation(config: PruneConfig) -> PruneConfig:
    return replace(config, evaluation=replace(config.evaluation, tasks=[], texts=[], cost=False))


def _is_evaluated(folder: RunFolder, evaluation: EvaluationConfig) -> bool:
    """Whether an earlier process has measured what is asked for.

    What is null there was chosen then.
    """
    settings = (folder.read(EVALUATION) or {}).get("settings", {})
    return bool(settings) and all(
        settings.get(name) == value
        for name, value in asdict(evaluation).items()
        if value is not None
    )
