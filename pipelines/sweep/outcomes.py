"""What there is of each point of a sweep, read from its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config.grid import Point
from pipelines.evaluate.benchmarks import average_stderr
from pipelines.evaluate.results import conditions
from pipelines.prune.job import PruneJob
from pipelines.runs.files import (
    ALLOCATION,
    CHANNEL_ORDER,
    EVALUATION,
    RUN,
    SUMMARY,
    TRAJECTORY,
    read_json_if_there,
    read_trajectory,
    read_with,
)
from pipelines.runs.journal import set_of
from pruning.calibration.token_sets import SetName
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.search.allocation_result import Allocation
from pruning.shape import ModelShape, Removal
from workers.tasks import ScoreKind

Key = tuple[str, str, str, ScoreKind]
"""Of one candidate, on every batch of a set: token set, channel order, shape, kind of score.

With the model, what its score depends on.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What there is of one point.

    Args:
        folder: relative to the sweep's.
        problem: why it is not what was asked for; None if it is.
        model: fingerprint, dtype and sequences of a batch, in one text.
        candidates: by stage, batches of every candidate that it looked at.
        dense: the dense model's numbers, under the same names as `values`.
        values: its perplexities and its accuracy, as far as they were measured.
        measured_on: fingerprint of the text behind each perplexity, and what the accuracy depends
            on; numbers measured on different ones do not compare.
    """

    point: Point
    folder: str
    problem: str | None
    model: str = ""
    target_ratio: float | None = None
    ratio: float | None = None
    num_steps: int = 0
    candidates: Mapping[str, Mapping[Key, int]] = field(default_factory=dict)
    dense: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    measured_on: Mapping[str, str] = field(default_factory=dict)
    stderrs: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def outcome_of(point: Point, job: PruneJob, sweep_folder: Path, problem: str | None) -> Outcome:
    """Reads it from the point's folder.

    Raises:
        InputError: a file there is damaged. Of a point with a problem, the problem is all that is
            told then.
    """
    try:
        return _outcome_of(point, job, sweep_folder, problem)
    except (InputError, LookupError, TypeError) as error:
        if isinstance(error, InputError) and problem is None:
            raise
        if problem is None:
            raise InputError(
                f"output_dir: {sweep_folder / point.name} is damaged: {error!r}; remove it and run "
                "the same command again: the scores are in the store"
            ) from error
        return Outcome(point, point.name, problem, target_ratio=job.config.search.target_ratio)


def recorded_run_id(folder: Path) -> str | None:
    """What MLflow calls the run in a point's folder, as soon as it does."""
    return (read_json_if_there(folder / RUN, option="output_dir") or {}).get("mlflow_run_id")


def _outcome_of(point: Point, job: PruneJob, sweep_folder: Path, problem: str | None) -> Outcome:
    folder = sweep_folder / point.name
    model = f"{job.fingerprint} {job.dtype} {job.config.calibration.batch_size}"
    common: dict[str, Any] = {"model": model, "target_ratio": job.config.search.target_ratio}
    summary = read_json_if_there(folder / SUMMARY, option="output_dir")
    if summary is None:
        return Outcome(point, point.name, problem, **common)
    pairs = {f"{name}_perplexity": pair for name, pair in summary["perplexity"].items()}
    values = {name: pair["pruned"] for name, pair in pairs.items()}
    dense = {name: pair["dense"] for name, pair in pairs.items()}
    texts = {
        f"{name}_perplexity": tokens["fingerprint"]
        for name, tokens in summary["calibration"].items()
    }
    stderrs: dict[str, float] = {}
    measured = read_json_if_there(folder / EVALUATION, option="output_dir")
    if measured is not None:
        texts |= {
            f"{name}_perplexity": fingerprint
            for name, fingerprint in measured["fingerprints"]["texts"].items()
        }
        texts["accuracy"] = str(sorted(conditions(measured).items()))
        values |= _measured(measured)
        dense |= _measured(measured["dense"] or {"perplexity": {}, "average": None})
        error = average_stderr(measured["tasks"])
        stderrs = {} if error is None else {"accuracy": error}
    return Outcome(
        point,
        point.name,
        problem,
        **common,
        ratio=summary["ratio"],
        num_steps=len(summary["steps"]),
        candidates=_candidates(folder, job),
        dense={name: value for name, value in dense.items() if value is not None},
        values={name: value for name, value in values.items() if value is not None},
        measured_on=texts,
        stderrs=stderrs,
        evaluations={name: summary["evaluations"][name] for name in ("scored", "reused")},
        seconds=summary["seconds"],
    )


def _candidates(folder: Path, job: PruneJob) -> dict[str, dict[Key, int]]:
    """By stage, what the search looked at, from its trajectory; as of the block stage, what an
    allocation measured before.
    """
    path = folder / CHANNEL_ORDER
    order = read_with(ChannelOrder.load, path, option="output_dir").fingerprint
    base, found = job.accounting.dense, dict[str, dict[Key, int]]()

    def add(stage: str, set_name: SetName, shapes: Iterable[ModelShape], kind: ScoreKind) -> None:
        tokens = job.calibration.sets()[set_name]
        num_batches = len(tokens.batches(job.config.calibration.batch_size))
        found.setdefault(stage, {}).update(
            {(tokens.fingerprint, order, shape.digest, kind): num_batches for shape in shapes}
        )

    if (folder / ALLOCATION).exists():
        allocation = read_with(Allocation.load, folder / ALLOCATION, option="output_dir")
        add("block", "block", allocation.measured(), "kl")
    for line in read_trajectory(folder / TRAJECTORY, option="output_dir"):
        removals = map(Removal.from_json, line["candidates"])
        add(line["stage"], set_of(line), map(base.without, removals), "nll")
        base = ModelShape.parse(line["shape"])
    return found


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    texts = {f"{name}_perplexity": value for name, value in report["perplexity"].items()}
    return texts | ({"accuracy": report["average"]} if report["average"] is not None else {})
