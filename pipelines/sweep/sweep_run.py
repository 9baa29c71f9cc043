"""One sweep from start to finish: every point on one pool of evaluators, then the table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.cli.commands import command_line, resuming
from pipelines.cli.console import log_to, show_result
from pipelines.config.grid import written
from pipelines.config.groups import EvaluationConfig
from pipelines.config.overrides import option_of
from pipelines.config.sweep import SweepConfig
from pipelines.errors import Failed
from pipelines.evaluators import local_session, open_pool
from pipelines.prune.pipeline import run_post_steps
from pipelines.prune.search_run import SearchRun
from pipelines.runs.files import (
    CHANNEL_ORDER,
    EVALUATION,
    PRUNE_LOG,
    RUN,
    SUMMARY,
    SWEEP,
    SWEEP_LOG,
    SWEEP_PICTURE,
)
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import versions
from pipelines.store.scores import ScoreStore
from pipelines.sweep.outcomes import outcome_of
from pipelines.sweep.point_jobs import PointJob, largest, same_evaluators, spec_of
from pipelines.sweep.sweep_file import SweepFile
from pipelines.sweep.table import table
from pipelines.tracking.description import sweep_description
from pipelines.tracking.metrics import sweep_metrics, sweep_params, sweep_tags
from pipelines.tracking.tracker import Tracker
from pruning.errors import ExportError, InputError, ScoringError
from pruning.importance.channel_order import STATISTICS
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
        self._orders: dict[tuple[str, ...], Path] = {}
        record = folder.read(RUN) or {}
        self.started = float(record["started"])
        self.tracker = Tracker(
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=f"sweep of {len(jobs)} points",
            started=self.started,
            run_id=record.get("mlflow_run_id"),
            on_run_id=lambda run_id: folder.remember(mlflow_run_id=run_id),
            is_sweep=True,
        )
        self.file = SweepFile(
            folder, jobs, grid, self.tracker, max_perplexity_ratio=config.max_perplexity_ratio
        )

    def go(self) -> dict[str, Any]:
        """All searches, then what the configuration asks for after them, then the table.

        Raises:
            Failed: some points did; the others are done.
        """
        params = sweep_params(self.grid, str(self.folder.path))
        self.tracker.start(params, sweep_tags(versions()), {})
        first = self.jobs[0].job
        try:
            with (
                ScoreStore(self.config.store.url, self.config.store.retry_s) as store,
                local_session(first.machine, first.placement),  # one Ray for all pools
            ):
                for group in same_evaluators(self.jobs):
                    self._search_all(group, store)
                for each in self.jobs:
                    self._follow_up(each)
            tracked = self._track(self.file.write())
            report = self.file.write()  # by now MLflow has said what it calls the runs
        except BaseException as error:
            self.tracker.fail(error, [self.config.store.url])
            raise
        show_result(
            table(report),
            f"everything is in {self.folder.path}: {SWEEP}, {SWEEP_PICTURE}, and a folder for "
            "each point",
            *((self.tracker.link(),) if tracked else ()),
            *self.tracker.left_out(),
            "to compare the points: " + command_line("report", str(self.folder.path)),
        )
        if self.file.problems:
            raise Failed(
                "\n".join(f"point {name}: {said}" for name, said in self.file.problems.items())
                + "\n  The other points are done. To try these again: "
                + resuming("sweep", self.folder.path)
            )
        return report

    def _track(self, report: Mapping[str, Any]) -> bool:
        """Whether MLflow has everything."""
        for step, row in enumerate(report["points"]):
            self.tracker.log_metrics(sweep_metrics(row), step=step, timestamp=self.started + step)
        command = command_line("sweep", *self._words())
        described = sweep_description(report, command)
        if self.file.problems:
            said = (f"point {name}: {why}" for name, why in self.file.problems.items())
            secrets = [self.config.store.url]
            self.tracker.describe_failed(described, "\n".join(said), secrets, [SWEEP_PICTURE])
        else:
            self.tracker.describe(described, [SWEEP_PICTURE])
        return self.tracker.finish(
            succeeded=not self.file.problems,
            artifacts=[self.folder.path / SWEEP, self.folder.path / SWEEP_PICTURE],
        )

    def _words(self) -> list[str]:
        """The command that made it, without where it computes and keeps things."""
        record = self.folder.read(RUN) or {}
        places = ("store", "tracking", "cluster")
        given = [
            word for word in record["overrides"] if option_of(word).partition(".")[0] not in places
        ]
        return [*given, f"grid={written(record['grid'])}"]

    def _search_all(self, group: Sequence[PointJob], store: ScoreStore) -> None:
        """The searches of one group, on one pool.

        Evaluators that were lost beyond repair are replaced by new ones for the next point.
        """
        with ExitStack() as pools:
            pool: Pool | None = None
            for each in group:
                problem: str | None = None
                if not self._is_searched(each):
                    number = self.file.num_points + 1
                    log.info("point %d of %d: %s", number, len(self.jobs), each.point.name)
                    try:
                        pool = pool or pools.enter_context(self._pool(group))
                        self._search(each, store, pool)
                    except _OF_ONE_POINT as error:
                        problem = str(error)
                        log.error("point %s: %s", each.point.name, error)
                        if isinstance(error, WorkersLost):
                            pools.close()
                            pool = None
                self.file.add(each, problem)

    def _pool(self, group: Sequence[PointJob]) -> AbstractContextManager[Pool]:
        job = largest(group)
        cluster, run = self.config.cluster, str(self.folder.path)
        return open_pool(cluster, job.machine, job.placement, spec_of(group), run=run)

    def _is_searched(self, each: PointJob) -> bool:
        """Whether an earlier process has finished this point."""
        folder = RunFolder(each.job.config.output_dir)
        try:
            summary = folder.read(SUMMARY) if folder.read(RUN) is not None else None
            if summary is None or summary.get("status") != "target reached":
                return False
            folder.claim(each.job.identity())
            outcome_of(each.point, each.job, self.folder.path, None)
        except InputError as error:
            log.warning("point %s is searched again: %s", each.point.name, error)
            return False
        finally:
            folder.release()
        return True

    def _search(self, each: PointJob, store: ScoreStore, pool: Pool) -> None:
        pool.faults = FaultLog()
        with self._folder_of(each) as folder:
            record = folder.claim(each.job.identity())
            was_there = (folder.path / CHANNEL_ORDER).exists()  # made elsewhere, for all we know
            self._share_order(each, folder)
            SearchRun(each.job, store, folder, record, pool=pool, parent=self.tracker).go()
            if not was_there:
                self._orders.setdefault(each.job.order_key, folder.path)

    def _share_order(self, each: PointJob, folder: RunFolder) -> None:
        """The channel order, with the statistics that compensate, from a point of this process that
        has the same: its evaluators would find the same bytes again.
        """
        other = self._orders.get(each.job.order_key)
        if other is None or (folder.path / CHANNEL_ORDER).exists():
            return
        for name in (STATISTICS, CHANNEL_ORDER):  # the order last: who has it has both
            if (other / name).exists():
                folder.link(name, other / name)

    def _follow_up(self, each: PointJob) -> None:
        """Evaluation and export of a point, where they are asked for."""
        if each.point.name in self.file.problems or not (
            self.config.evaluation.wanted or self.config.export
        ):
            return
        job, problem = each.job, None
        try:
            with self._folder_of(each) as folder:
                if _is_evaluated(folder, job.config.evaluation):
                    nothing = job.config.evaluation.nothing()
                    job = replace(job, config=replace(job.config, evaluation=nothing))
                log.info("after the search of point %s", each.point.name)
                run_post_steps(job, folder)
        except _OF_ONE_POINT as error:
            problem = str(error)
            log.error("point %s: %s", each.point.name, error)
        self.file.add(each, problem)

    @contextmanager
    def _folder_of(self, each: PointJob) -> Iterator[RunFolder]:
        """The folder of a point, with its own log file for the time of the context."""
        folder = RunFolder(each.job.config.output_dir)
        try:
            log_to(folder.path / PRUNE_LOG)
            yield folder
        finally:
            log_to(self.folder.path / SWEEP_LOG)
            folder.release()


_SINCE: dict[str, Any] = {"cost_engines": []}
"""Settings of an evaluation that an earlier version did not have, as it did without them."""


def _is_evaluated(folder: RunFolder, evaluation: EvaluationConfig) -> bool:
    """Whether an earlier process has measured what is asked for.

    What is null there was chosen then.
    """
    settings = (folder.read(EVALUATION) or {}).get("settings", {})
    return bool(settings) and all(
        settings.get(name, _SINCE.get(name)) == value
        for name, value in asdict(evaluation).items()
        if value is not None
    )
