"""The searches that a report compares, read from their folders alone: the models need not be there
any more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipelines.config.target import in_words
from pipelines.evaluate.benchmarks import average_stderr
from pipelines.evaluate.results import conditions, metrics_of, stderr_name
from pipelines.report.data import (
    SIZES,
    Evaluation,
    Pair,
    ReportRun,
    ReportStep,
    Score,
    TaskScore,
)
from pipelines.report.summaries import (
    costs,
    heldout_text,
    milliseconds,
    nll_per_sequence,
    samples,
)
from pipelines.runs.files import (
    ALLOCATION,
    EVALUATION,
    LATENCY,
    SUMMARY,
    SWEEP,
    TRAJECTORY,
    read_json,
    read_json_if_there,
    read_with,
)
from pipelines.runs.journal import set_of
from pipelines.runs.near_ties import lost_by
from pipelines.runs.saved_run import SavedRecovery, SavedRun, read_recovery, read_saved_run
from pruning.calibration.token_sets import heldout_sources
from pruning.costs.latency import LatencyTable
from pruning.errors import InputError
from pruning.search.allocation_result import Allocation
from pruning.shape import ModelShape, Removal

log = logging.getLogger(__name__)

_OWN = ("output_dir", "resume")
"""Settings that differ between any two folders and decide nothing."""


def read_runs(paths: Sequence[str]) -> tuple[ReportRun, ...]:
    """Reads every folder; one with a `sweep.json` stands for the points of that sweep.

    Raises:
        InputError: with every problem at once.
    """
    problems: list[str] = []
    found: list[tuple[str, Path]] = []
    for path in paths:
        try:
            found += _folders(path)
        except InputError as error:
            problems.append(str(error))
    names = [name for name, _ in found]
    found = [
        (name if names.count(name) == 1 else f"{folder.parent.name}/{name}", folder)
        for name, folder in found
    ]
    runs: list[ReportRun] = []
    seen: dict[Path, str] = {}
    for name, folder in found:
        if folder.resolve() in seen:
            problems.append(f"runs: {folder} is there twice")
            continue
        seen[folder.resolve()] = name
        try:
            runs.append(_read_run(name, folder))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    runs = [replace(run, key=_key(index)) for index, run in enumerate(runs)]
    return tuple(replace(run, dense=_dense_of(run, runs)) for run in runs)


def _folders(path: str) -> list[tuple[str, Path]]:
    """(name, folder) of each search that one word of the command stands for."""
    folder = Path(path).expanduser().absolute()
    if not path.strip() or not folder.is_dir():
        raise InputError(f"runs: no such folder: {path!r}")
    sweep = folder / SWEEP
    if not sweep.exists():
        return [(folder.name, folder)]
    report = read_json(sweep, option="runs", fields=("points",))
    points = read_with(
        lambda _: [
            (str(point["name"]), folder / point["folder"])
            for point in report["points"]
            if point.get("folder")
        ],
        sweep,
        option="runs",
    )
    started = [(f"{folder.name}/{name}", point) for name, point in points if _has_steps(point)]
    for name, point in points:
        if not _has_steps(point):
            log.warning("point %s of the sweep in %s has no step yet: it is left out", name, folder)
    if not started:
        raise InputError(f"runs: no point of the sweep in {folder} has taken a step yet")
    return started


def _has_steps(folder: Path) -> bool:
    path = folder / TRAJECTORY
    return path.is_file() and b"\n" in path.read_bytes()


def _key(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (_key(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _read_run(name: str, folder: Path) -> ReportRun:
    recovery = read_recovery(str(folder), option="runs")
    saved = read_saved_run(str(folder), option="runs")
    measured = _of_final_shape(
        read_json_if_there(folder / EVALUATION, option="runs"), saved, folder / EVALUATION
    )
    path = saved.folder / TRAJECTORY
    steps = read_with(lambda _: tuple(map(_step, saved.lines)), path, option="runs")
    evaluation = (
        read_with(lambda _: _evaluation(measured), folder / EVALUATION, option="runs")
        if measured is not None
        else None
    )
    path = saved.folder / ALLOCATION
    allocation = read_with(Allocation.load, path, option="runs") if path.exists() else None
    path = saved.folder / LATENCY
    latency = read_with(LatencyTable.load, path, option="runs") if path.exists() else None
    run = read_with(
        lambda _: _run_of(name, saved, steps, evaluation, allocation, latency),
        saved.folder / SUMMARY,
        option="runs",
    )
    return run if recovery is None else _recovered(run, recovery)


def _of_final_shape(
    measured: dict[str, Any] | None, saved: SavedRun, path: Path
) -> dict[str, Any] | None:
    """An evaluation of an earlier shape says nothing of the one that the search came to."""
    final = saved.lines[-1]["shape"] if saved.lines else None
    if measured is not None and measured.get("shape") not in (final, None):
        log.warning("%s is of an earlier shape: it is left out; evaluate the run again", path)
        return None
    return measured


def _recovered(run: ReportRun, recovery: SavedRecovery) -> ReportRun:
    """What the search and the recovery of it say together. The held-out perplexities of the search
    are those of the model before.
    """
    found = recovery.description
    dense, pruned, recovered = (
        f"{found['heldout_perplexity'][name]:.2f}" for name in ("dense", "pruned", "recovered")
    )
    return replace(
        run,
        name=f"{run.folder.name}, recovered",
        folder=recovery.folder,
        outcome=f"{run.outcome}; recovered in {found['best_step']} updates: perplexity {pruned} to "
        f"{recovered} on held-out text, where the dense model has {dense}",
        heldout=Pair(None, None),
        heldout_sources={},
        heldout_nll={},
        samples=(),
        mlflow_run_id=recovery.record.get("mlflow_run_id"),
    )


def _run_of(
    name: str,
    saved: SavedRun,
    steps: tuple[ReportStep, ...],
    evaluation: Evaluation | None,
    allocation: Allocation | None,
    latency: LatencyTable | None,
) -> ReportRun:
    summary = saved.summary or {}
    identity = {key: str(value) for key, value in saved.record["identity"].items()}
    settings = _flat(OmegaConf.to_container(saved.config))
    perplexity = {set_name: _pair(pair) for set_name, pair in summary.get("perplexity", {}).items()}
    heldout = perplexity.get("heldout", Pair(None, None))
    texts, target = summary.get("calibration", {}), _asked(saved.config.search)
    sources = heldout_sources(perplexity)
    return ReportRun(
        key="",
        name=name,
        folder=saved.folder,
        model_name=saved.model_name,
        ended=saved.summary is not None,
        outcome=str(summary["status"])
        if summary
        else (f"has not ended: {steps[-1].ratio:.2%} of {target} removed after {len(steps)} steps"),
        target=target,
        identity=identity,
        settings=settings | {key: value for key, value in identity.items() if key in settings},
        versions={key: str(value) for key, value in summary.get("versions", {}).items()}
        | {"git revision": str(summary.get("git_revision") or "unknown")},
        steps=steps,
        dense={
            set_name: pair.dense
            for set_name, pair in perplexity.items()
            if pair.dense is not None and set_name not in sources
        },
        heldout=heldout,
        heldout_text=heldout_text(identity["model"], texts.get("heldout", {}), heldout),
        heldout_nll={
            heldout_text(identity["model"], texts[set_name], perplexity[set_name]): found
            for set_name, found in nll_per_sequence(summary).items()
        },
        heldout_sources={
            source: (
                perplexity[set_name],
                heldout_text(identity["model"], texts[set_name], perplexity[set_name]),
            )
            for set_name, source in sources.items()
        },
        sizes={size: _pair(summary[size]) for size in SIZES if size in summary},
        costs=costs(summary) if summary else {},
        evaluation=evaluation,
        allocation=allocation,
        latency=latency,
        milliseconds=milliseconds(summary, identity),
        samples=samples(summary),
        tracking_uri=str(saved.config.tracking.uri),
        mlflow_run_id=saved.record.get("mlflow_run_id"),
    )


def _asked(search: DictConfig) -> str:
    """All targets; of parameters alone a plain number, as in folders that know no others."""
    ratio, others = search.target_ratio, search.get("target")
    if others is None:
        return f"{float(ratio):.2%}"
    targets = {} if ratio is None else {"search.target_ratio": float(ratio)}
    return in_words(
        None, targets | {name: value for name, value in others.items() if value is not None}
    )


def _step(line: Mapping[str, Any]) -> ReportStep:
    return ReportStep(
        number=int(line["step"]),
        stage=str(line["stage"]),
        removal=Removal.from_json(line["removed"]),
        shape=ModelShape.parse(line["shape"]),
        perplexity=_number(line["perplexity"]),
        ratio=float(line["ratio"]),
        margin=_number(line["margin"]),
        margin_stderr=_number(
            line.get("margin_stderr")
        ),  # folders from before it was recorded lack it, and `stderr` below
        scores={
            Removal.from_json(each): Score(
                _number(each["nll"]),
                lost_by(each, _number(line["nll"])),
                _number(each.get("stderr")),
            )
            for each in line["candidates"]
        },
        set_name=set_of(line),
        unscored=None
        if (left_out := line.get("unscored")) is None
        else {Removal.from_json(each): float(each["change"]) for each in left_out},
    )


def _evaluation(report: Mapping[str, Any]) -> Evaluation:
    theirs = report["dense"] or {"perplexity": {}, "tasks": {}, "average": None}
    tasks = [
        TaskScore(
            task,
            metric,
            Pair(_number(theirs["tasks"].get(task, {}).get(metric)), _number(values[metric])),
            Pair(
                _number(theirs["tasks"].get(task, {}).get(stderr_name(metric))),
                _number(values.get(stderr_name(metric))),
            ),
        )
        for task, values in report["tasks"].items()
        for metric in metrics_of(values)
        if isinstance(values[metric], (int, float))
    ]
    return Evaluation(
        ratio=float(report["ratio"]),
        texts={
            name: (
                Pair(_number(theirs["perplexity"].get(name)), _number(value)),
                str(report["fingerprints"]["texts"][name]),
            )
            for name, value in report["perplexity"].items()
        },
        tasks=tuple(tasks),
        average=Pair(_number(theirs["average"]), _number(report["average"])),
        average_stderr=Pair(average_stderr(theirs["tasks"]), average_stderr(report["tasks"])),
        conditions=conditions(report),
    )


def _dense_of(run: ReportRun, runs: Sequence[ReportRun]) -> dict[str, float]:
    """What a search that was stopped has not written down, another with the same model and text may
    have.
    """
    known = dict(run.dense)
    for other in runs:
        for name, value in other.dense.items():
            same = all(
                run.identity.get(key) == other.identity.get(key)
                for key in ("model", "model.dtype", f"calibration.{name}", "calibration.batch_size")
            )
            if name != "heldout" and same:
                known.setdefault(name, value)
    return known


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in _OWN:
            flat[f"{prefix}{name}"] = "null" if value is None else str(value)
    return flat


def _pair(values: Mapping[str, Any]) -> Pair:
    return Pair(_number(values["dense"]), _number(values["pruned"]))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
