"""The points of a sweep as jobs, in the order that shares most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config.grid import Point
from pipelines.config.overrides import composed, option_of
from pipelines.config.point_problems import PointProblems
from pipelines.config.sweep import SweepConfig
from pipelines.prune.job import PruneJob, make_job
from pipelines.prune.pipeline import validate_post_steps
from pipelines.runs.files import RUN
from pipelines.runs.folder import RunFolder
from pruning.errors import InputError
from pruning.search.stages import make_stages
from workers.tasks import EvaluatorSpec


@dataclass(frozen=True, slots=True)
class PointJob:
    """One point, ready to run."""

    point: Point
    job: PruneJob


def check_folder(each: PointJob) -> None:
    """Before anything is written.

    Raises:
        InputError: what is there already belongs to another run.
    """
    path = each.job.config.output_dir
    assert path is not None
    if (Path(path) / RUN).exists():
        folder = RunFolder(path)
        try:
            folder.claim(each.job.identity())
        finally:
            folder.release()


def make_jobs(points: Sequence[Point], given: Sequence[str], *, is_new: bool) -> list[PointJob]:
    """Every point, checked, in the order in which they run: those with a trunk in common behind one
    another, the longest trunk first.

    Args:
        given: overrides of all points.
        is_new: whether options that do nothing are problems; a sweep that is there already goes on
            with what it was given.

    Raises:
        InputError: what is wrong with any of them, all at once.
    """
    problems, jobs = PointProblems(points), list[PointJob]()
    names = [option_of(override) for override in given] if is_new else []
    for point in points:
        try:
            job = make_job(
                SweepConfig.point(
                    composed("sweep", [*given, *point.overrides]),
                    list(point.settings) if is_new else (),
                    names,
                ),
                [each.job for each in jobs],
            )
            if all(each.job.config.model != job.config.model for each in jobs):
                validate_post_steps(job)
            jobs.append(PointJob(point, job))
        except InputError as error:
            problems.add(point, error)
    problems.add_unused([each.job.config.search for each in jobs], names)
    problems.check()
    trunks = list(dict.fromkeys(_trunk(each.job) for each in jobs))
    return sorted(jobs, key=lambda each: (trunks.index(_trunk(each.job)), -_block_target(each.job)))


def _block_target(job: PruneJob) -> float:
    """The ratio at which its block stage ends."""
    return make_stages(job.accounting, job.settings)[0].target_ratio


def _trunk(job: PruneJob) -> str:
    """What two searches agree on that begin with the same steps."""
    identity = job.identity()
    return str(
        {
            name: value
            for name, value in identity.items()
            if name not in ("search.target_ratio", "search.distribution")
        }
    )


def same_evaluators(jobs: Sequence[PointJob]) -> list[list[PointJob]]:
    """Points that the same evaluators can score, in their order; with names for all their
    calibration sets.
    """
    groups: dict[tuple[Any, ...], list[PointJob]] = {}
    for each in jobs:
        job = each.job
        groups.setdefault(
            (
                job.fingerprint,
                job.dtype,
                job.config.model.trust_remote_code,
                job.config.calibration.batch_size,
            ),
            [],
        ).append(each)
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


def largest(group: Sequence[PointJob]) -> PruneJob:
    """The one whose evaluators need the most memory, so that they hold the longest sequences of
    all.
    """
    return max((each.job for each in group), key=lambda job: job.evaluator_bytes)


def spec_of(group: Sequence[PointJob]) -> EvaluatorSpec:
    """One model with the calibration sets of all."""
    specs = [each.job.spec() for each in group]
    return replace(
        specs[0], token_sets={name: ids for spec in specs for name, ids in spec.token_sets.items()}
    )
