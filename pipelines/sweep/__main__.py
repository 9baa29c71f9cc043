"""`python -m pipelines.sweep`: many searches as one experiment: one pool of evaluators, one store, one table.

What two points have in common is scored once. A point that fails does not stop the others; the same command goes on with what is missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipelines.cli.console import console, log_to
from pipelines.cli.launch import Failed, composition_error, launch, option_names, quoted, unknown_option
from pipelines.config.grid import Point, as_grid, plain_grid, points_of
from pipelines.config.groups import EvaluationConfig, PruneConfig
from pipelines.config.redaction import MASK, masked_url
from pipelines.config.sweep import SweepConfig
from pipelines.evaluate.__main__ import REPORT as EVALUATION
from pipelines.evaluators import joined, local_session, open_pool
from pipelines.prune.__main__ import check_what_follows, finish
from pipelines.prune.job import PruneJob, make_job, saved_url
from pipelines.prune.search_run import SearchRun
from pipelines.prune.summary import git_revision, versions
from pipelines.runs.folder import RunFolder
from pipelines.runs.pictures import plot_sweep
from pipelines.store.scores import ScoreStore
from pipelines.sweep.table import Outcome, judge, outcome_of, recorded_run_id, sweep_metrics, sweep_report, table
from pipelines.tracking.tracker import Tracker
from pruning.errors import ExportError, InputError, ScoringError
from pruning.shape import dump_json
from workers.pool.faults import FaultLog, WorkersLost
from workers.pool.protocol import Pool
from workers.tasks import EvaluatorSpec

log = logging.getLogger(__name__)

REPORT, PICTURE, LOG = "sweep.json", "sweep.png", "sweep.log"
_OWN = ("output_dir", "resume", "grid")
_OF_ONE_POINT = (InputError, ScoringError, ExportError, WorkersLost)  # anything else, such as a full disk, would fail the next point as well


@dataclass(frozen=True, slots=True)
class PointJob:
    """One point, ready to run."""

    point: Point
    job: PruneJob


def sweep(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs every point of the grid that is not there yet; returns what sweep.json says.

    Raises:
        InputError: something that the user can mend, in any point, found before the first one starts.
        Failed: some points did; the others are done.
    """
    log_to(None)
    given = [override for override in overrides if override.partition("=")[0].lstrip("+~") not in _OWN]
    config, given, grid = _resumed(raw, given) if raw.resume else (SweepConfig.of(raw), given, plain_grid(raw.grid))
    unknown = [unknown_option(name, option_names(raw)) for name in grid if "." in name and name not in option_names(raw)]
    if unknown:
        raise InputError("\n".join(unknown))
    with joined(config.cluster):
        jobs = _make_jobs(points_of(grid), given)
        with RunFolder(raw.output_dir) as folder:
            try:
                record = folder.claim({"kind": "sweep"})
                for each in jobs:
                    each.job.config.output_dir = str(folder.path / each.point.name)
                    _check_folder(each)
                folder.write("run.json", dump_json(record | {"grid": _saved_grid(grid), "overrides": _saved_overrides(given, jobs[0].job)}))
                log_to(folder.path / LOG)
                return _Sweep(config, jobs, folder, grid).go()
            finally:
                log_to(None)


class _Sweep:
    """A sweep in its folder."""

    def __init__(self, config: SweepConfig, jobs: Sequence[PointJob], folder: RunFolder, grid: Mapping[str, Any]) -> None:
        self.config, self.jobs, self.folder, self.grid = config, jobs, folder, grid
        self.outcomes: dict[str, Outcome] = {}
        record = folder.read("run.json") or {}
        self.started = float(record["started"])
        self.tracker = Tracker(
            uri=config.tracking.uri,
            experiment=config.tracking.experiment,
            run_name=f"sweep of {len(jobs)} points",
            started=self.started,
            run_id=record.get("mlflow_run_id"),
            on_run_id=lambda run_id: self._remember(mlflow_run_id=run_id),
            again="the same command",
            is_sweep=True,
        )

    def go(self) -> dict[str, Any]:
        """All searches, then what the configuration asks for after them, then the table."""
        tags = {f"version.{name}": found for name, found in versions().items()} | {"mlflow.source.name": "pipelines.sweep", "mlflow.source.type": "LOCAL"}
        self.tracker.start({f"grid.{name}": values for name, values in self.grid.items()} | {"output_dir": str(self.folder.path)}, tags, {})
        try:
            with ScoreStore(self.config.store.url, self.config.store.retry_s) as store, self._session():
                for group in _same_evaluators(self.jobs):
                    self._search_all(group, store)
                for each in self.jobs:
                    self._follow_up(each)
            report = self._write()
            for step, row in enumerate(report["points"]):
                self.tracker.log_metrics(sweep_metrics(row), step=step, timestamp=self.started + step)
            tracked = self.tracker.finish(succeeded=not self._failed, artifacts=[self.folder.path / REPORT, self.folder.path / PICTURE])
            report = self._write()  # by now MLflow has said what it calls the runs
        except BaseException:
            self.tracker.finish(succeeded=False, artifacts=(), timeout_s=5)
            raise
        self._show(report, tracked)
        if self._failed:
            problems = "\n".join(f"point {name}: {outcome.problem}" for name, outcome in self._failed.items())
            raise Failed(f"{problems}\n  The other points are done; the same command with output_dir={self.folder.path} tries these again")
        return report

    @property
    def _failed(self) -> dict[str, Outcome]:
        return {name: outcome for name, outcome in self.outcomes.items() if outcome.problem is not None}

    @contextmanager
    def _session(self) -> Iterator[None]:
        """One Ray of our own for all pools, where one is needed."""
        first = self.jobs[0].job
        with local_session(first.machine, first.placement):
            yield

    def _search_all(self, group: Sequence[PointJob], store: ScoreStore) -> None:
        """The searches of one group, on one pool. Evaluators that were lost beyond repair are replaced by new ones for the next point."""
        with ExitStack() as pools:
            pool: Pool | None = None
            for each in group:
                past = self._past(each)
                if past is None:
                    log.info("point %d of %d: %s", len(self.outcomes) + 1, len(self.jobs), each.point.name)
                    try:
                        if pool is None:
                            job = _largest(group)
                            pool = pools.enter_context(open_pool(self.config.cluster, job.machine, job.placement, _spec_of(group)))
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
            summary = folder.read("summary.json") if folder.read("run.json") is not None else None
            if summary is None or summary["status"] != "target reached":
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
            log_to(folder.path / "prune.log")
            SearchRun(each.job, store, folder, record, pool=pool, parent=self.tracker).go()
            return outcome_of(each.point, each.job, self.folder.path, None)
        finally:
            log_to(self.folder.path / LOG)
            folder.release()

    def _follow_up(self, each: PointJob) -> None:
        """Evaluation and export of a point, where they are asked for."""
        if self.outcomes[each.point.name].problem is not None or not (self.config.evaluation.wanted or self.config.export):
            return
        folder = RunFolder(each.job.config.output_dir)
        config, problem = each.job.config, None
        try:
            if _is_evaluated(folder, config.evaluation):
                config = replace(config, evaluation=replace(config.evaluation, tasks=[], texts=[], cost=False))
            log_to(folder.path / "prune.log")
            log.info("after the search of point %s", each.point.name)
            finish(config, folder)
        except _OF_ONE_POINT as error:
            problem = str(error)
            log.error("point %s: %s", each.point.name, error)
        finally:
            log_to(self.folder.path / LOG)
            folder.release()
        self.outcomes[each.point.name] = outcome_of(each.point, each.job, self.folder.path, problem)
        self._write()

    def _write(self) -> dict[str, Any]:
        """The report of all points so far, after each of them, so that there is one whatever happens next."""
        # In the order of the grid, whichever ran first.
        points = [self.outcomes.get(each.point.name) or outcome_of(each.point, each.job, self.folder.path, "not run yet") for each in self._by_grid()]
        order = [self.outcomes[each.point.name] for each in self.jobs if each.point.name in self.outcomes]
        report: dict[str, Any] = {
            "grid": dict(self.grid),
            **sweep_report(points, order, judge(points), self.config.max_perplexity_ratio),
            "tracking": {"uri": masked_url(self.config.tracking.uri), "run_id": self.tracker.run_id},
            "versions": versions(),
            "git_revision": git_revision(),
        }
        for row in report["points"]:
            row["mlflow_run_id"] = recorded_run_id(self.folder.path / row["folder"])
        self.folder.write(REPORT, dump_json(report))
        self.folder.write_with(PICTURE, lambda path: plot_sweep(report, path))
        return report

    def _by_grid(self) -> list[PointJob]:
        order = {point.name: index for index, point in enumerate(points_of(self.grid))}
        return sorted(self.jobs, key=lambda each: order[each.point.name])

    def _remember(self, **fields: Any) -> None:
        self.folder.write("run.json", dump_json((self.folder.read("run.json") or {}) | fields))

    def _show(self, report: Mapping[str, Any], tracked: bool) -> None:
        console.print()
        console.print(table(report))
        console.print(f"everything is in {self.folder.path}: {REPORT}, {PICTURE}, and a folder for each point", markup=False, soft_wrap=True)
        if tracked:
            console.print(self.tracker.link(), markup=False, soft_wrap=True)
        console.print(f"to compare the points: python -m pipelines.report {self.folder.path}", markup=False, soft_wrap=True)


def _is_evaluated(folder: RunFolder, evaluation: EvaluationConfig) -> bool:
    """Whether an earlier process has measured what is asked for. What is null there was chosen then."""
    settings = (folder.read(EVALUATION) or {}).get("settings", {})
    return bool(settings) and all(settings.get(name) == value for name, value in asdict(evaluation).items() if value is not None)


def _resumed(raw: DictConfig, given: Sequence[str]) -> tuple[SweepConfig, list[str], dict[str, Any]]:
    """The settings saved in the folder, with what this command gives on top.

    Raises:
        InputError: the folder holds no sweep, or a password, which is not saved, is not given again.
    """
    if not raw.output_dir:
        raise InputError("output_dir: missing; resume=true goes on with the sweep in that folder")
    saved = Path(raw.output_dir).expanduser() / "run.json"
    try:
        record = json.loads(saved.read_text()) if saved.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"output_dir: cannot read {saved}: {error}") from error
    if "grid" not in record:
        raise InputError(f"output_dir: no sweep in {saved.parent.absolute()} to resume; leave resume out to start one")
    replaced = {override.partition("=")[0].lstrip("+") for override in given}  # store=postgresql replaces every store.* that was saved
    overrides = [*(override for override in record["overrides"] if override.partition("=")[0].lstrip("+").partition(".")[0] not in replaced), *given]
    config = SweepConfig.of(_composed(overrides))
    for name, url in _urls(config).items():
        if MASK in url:
            raise InputError(f"{name}: the sweep in output_dir used {url}, and passwords are not saved; give it again, as on the first command")
    return config, overrides, record["grid"] | plain_grid(raw.grid)


def _urls(config: PruneConfig) -> dict[str, str]:
    return {"store.url": config.store.url, "tracking.uri": config.tracking.uri}


def _saved_overrides(given: Sequence[str], job: PruneJob) -> list[str]:
    """As `pipelines.prune.job.saved_form`: paths absolute, those of files that nobody named too; passwords masked."""
    values = {"model.path": _absolute(job.config.model.path), "calibration.path": _absolute(job.config.calibration.path)}
    urls = {name: saved_url(url) for name, url in _urls(job.config).items()}
    values |= urls
    saved = {name: f"{name}={quoted(url)}" for name, url in urls.items() if url.startswith("sqlite:")}
    for override in given:
        name = override.partition("=")[0].lstrip("+")
        saved.pop(name, None)  # what is given later counts
        saved[name] = f"{name}={quoted(values[name])}" if values.get(name) is not None else override
    return list(saved.values())


def _saved_grid(grid: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [_absolute(value) for value in values] if name in ("model.path", "calibration.path") else values for name, values in grid.items()}


def _absolute(value: Any) -> Any:
    return str(Path(value).expanduser().absolute()) if isinstance(value, str) and Path(value).expanduser().exists() else value


def _check_folder(each: PointJob) -> None:
    """Before anything is written.

    Raises:
        InputError: what is there already belongs to another run.
    """
    path = each.job.config.output_dir
    assert path is not None
    if (Path(path) / "run.json").is_file():
        folder = RunFolder(path)
        try:
            folder.claim(each.job.identity())
        finally:
            folder.release()


def _composed(overrides: Sequence[str]) -> DictConfig:
    """Inside `launch`, which has Hydra set up.

    Raises:
        InputError: they do not compose.
    """
    try:
        return compose("sweep", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"grid: {composition_error(error)}") from error


def _make_jobs(points: Sequence[Point], given: Sequence[str]) -> list[PointJob]:
    """Every point, checked, in the order in which they run: those with a trunk in common behind one another, the longest trunk first.

    Raises:
        InputError: what is wrong with any of them, all at once.
    """
    problems: dict[str, list[str]] = {}
    jobs: list[PointJob] = []
    for point in points:
        try:
            job = make_job(SweepConfig.point(_composed([*given, *point.overrides])), [each.job for each in jobs])
            if all(each.job.config.model != job.config.model for each in jobs):
                check_what_follows(job)
            jobs.append(PointJob(point, job))
        except InputError as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(point.name)
    if problems:
        everywhere = {problem for problem, names in problems.items() if len(names) == len(points)}
        raise InputError("\n".join(problem if problem in everywhere else f"{problem} (point {', '.join(names)})" for problem, names in problems.items()))
    trunks = list(dict.fromkeys(_trunk(each.job) for each in jobs))
    return sorted(jobs, key=lambda each: (trunks.index(_trunk(each.job)), -each.job.stages[0].target_ratio))


def _trunk(job: PruneJob) -> str:
    """What two searches agree on that begin with the same steps."""
    identity = job.identity()
    return str({name: value for name, value in identity.items() if name not in ("search.target_ratio", "search.distribution")})


def _same_evaluators(jobs: Sequence[PointJob]) -> list[list[PointJob]]:
    """Points that the same evaluators can score, in their order; with names for all their calibration sets."""
    groups: dict[tuple[Any, ...], list[PointJob]] = {}
    for each in jobs:
        job = each.job
        groups.setdefault((job.fingerprint, job.dtype, job.config.model.trust_remote_code, job.config.calibration.batch_size), []).append(each)
    return [_with_keys(group) for group in groups.values()]


def _with_keys(group: Sequence[PointJob]) -> list[PointJob]:
    """The first text of the `block` sets is called block, the next one block 2, and so on."""
    known: dict[str, list[str]] = {}
    named = []
    for each in group:
        keys = {}
        for name, tokens in each.job.calibration.sets().items():
            texts = known.setdefault(name, [])
            if tokens.fingerprint not in texts:
                texts.append(tokens.fingerprint)
            number = texts.index(tokens.fingerprint) + 1
            keys[name] = name if number == 1 else f"{name} {number}"
        named.append(PointJob(each.point, replace(each.job, set_keys=keys)))
    return named


def _largest(group: Sequence[PointJob]) -> PruneJob:
    """The one whose evaluators need the most memory, so that they hold the longest sequences of all."""
    return max((each.job for each in group), key=lambda job: job.evaluator_bytes)


def _spec_of(group: Sequence[PointJob]) -> EvaluatorSpec:
    """One model with the calibration sets of all."""
    specs = [each.job.spec() for each in group]
    return replace(specs[0], token_sets={name: ids for spec in specs for name, ids in spec.token_sets.items()})


if __name__ == "__main__":
    launch("sweep", sweep, prepare=as_grid)
