"""`multipruner plan`: what a search or a sweep would take, from the model's configuration
alone: steps, evaluations, FLOPs, memory, hours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from pipelines.cli.console import console, duration, log_to, print_line
from pipelines.cli.launch import freeze_gc
from pipelines.config.grid import plain_grid, points_of
from pipelines.config.overrides import check_axes, composed, option_of
from pipelines.config.plan import PlanConfig
from pipelines.config.point_problems import PointProblems
from pipelines.config.target import in_words, targets_json
from pipelines.plan.estimate import (
    TOKENS_PER_ROW,
    measured_tflops,
    num_sequences,
    planned_statistics,
    search_flops,
    search_plan,
)
from pipelines.plan.serving import serving, serving_rows
from pipelines.plan.sweep_plan import PointPlan, evaluations_together, flops_together
from pipelines.runs.files import PLAN
from pipelines.runs.folder import RunFolder
from pipelines.runs.targets import search_settings
from pipelines.runs.timing import Timing
from pruning.canonical_json import dump_json
from pruning.costs.accounting import NOT_KNOWN, Accounting
from pruning.costs.known_sizes import sizes_of
from pruning.costs.sizes import DenseSizes
from pruning.errors import InputError
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.search.plan import SearchPlan
from pruning.search.strategies import STRATEGIES, strategy_of
from workers.cluster.machine import LocalMachine
from workers.evaluators.memory import shape_evaluator_bytes

log = logging.getLogger(__name__)

LAZY_NOTE = (
    "with search.selection=lazy at most so many evaluations, FLOPs and hours; SmolLM2 to 0.10 took "
    "392 evaluations where scoring all took 902"
)
"""Below a table."""


def plan(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Plans one search, or every point of a sweep; returns what plan.json says.

    Raises:
        InputError: the settings do not fit the model, or no path reaches the target.
    """
    log_to(None)
    report = planned(raw, overrides)
    with RunFolder(raw.output_dir) as folder:
        path = folder.write(PLAN, dump_json(report))
    console.print(plan_table(report))
    print_line(f"written to {path}")
    return report


def planned(raw: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The same without a folder: what plan.json would say.

    Raises:
        InputError: as `plan`.
    """
    grid = plain_grid(raw.grid)
    check_axes(grid, raw)
    given = [option_of(override) for override in overrides]
    config = PlanConfig.of_grid(raw) if grid else PlanConfig.of_new(raw, given)
    if not grid:
        return _search_report(config)[0]
    return _sweep_report(
        grid, [override for override in overrides if option_of(override) != "grid"]
    )


def plan_table(report: Mapping[str, Any]) -> Table:
    """A plan as a person reads it."""
    return _sweep_table(report) if "points" in report else _search_table(report)


def _search_report(config: PlanConfig) -> tuple[dict[str, Any], float | None]:
    """What plan.json says of one search, and the FLOPs of its block stage alone (None: not
    known).
    """
    model = config.model
    sizes = _sizes(model.path, model.revision, trust_remote_code=model.trust_remote_code)
    accounting = Accounting(sizes)
    timing = Timing.read(config.latency) if config.latency else None
    settings = search_settings(config, accounting, timing)
    if timing is not None:
        timing.require_blocks(accounting.dense, display_name(model.path))
        timing.require_sizes(strategy_of(settings).first_shapes(accounting), "this search")
    found = search_plan(accounting, settings)
    if found.impossible is not None:
        raise InputError(
            f"search.target_ratio: {config.search.target_ratio}; no path reaches it: the "
            f"{found.impossible} stage runs out of candidates"
        )
    return _report(config, accounting, found, hidden_size=sizes.hidden_size)


@lru_cache  # all points of a sweep have one model
def _sizes(path: str, revision: str | None, *, trust_remote_code: bool) -> DenseSizes:
    with freeze_gc():  # counting imports torch, unless it was done before
        return sizes_of(path, revision=revision, trust_remote_code=trust_remote_code)


def _sweep_report(grid: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Every point, and all together.

    Raises:
        InputError: what is wrong with any point, all at once.
    """
    points, found = points_of(grid), list[PointPlan]()
    problems, names = PointProblems(points), [option_of(override) for override in given]
    for point in points:
        try:
            raw = composed("plan", [*given, *point.overrides])
            config = PlanConfig.of_new(raw, list(point.settings), names)
            found.append(PointPlan(config, *_search_report(config)))
        except InputError as error:
            problems.add(point, error)
    problems.add_unused([each.config.search for each in found], names)
    problems.check()
    rows = [
        {"name": point.name, "settings": dict(point.settings), **each.report}
        for point, each in zip(points, found, strict=True)
    ]
    flops = flops_together(found)
    hours = [row["hours"] for row in rows]
    return {
        "points": rows,
        "evaluations": evaluations_together(found),
        "flops": flops,
        "peak_bytes_per_evaluator": max(row["peak_bytes_per_evaluator"] for row in rows),
        "num_evaluators": min(row["num_evaluators"] for row in rows),
        "hours": None
        if flops is None or None in hours
        else sum(hours) * flops / sum(row["flops"] for row in rows),
    }


def _report(
    config: PlanConfig, accounting: Accounting, found: SearchPlan, *, hidden_size: int
) -> tuple[dict[str, Any], float | None]:
    calibration = config.calibration
    dtype, peak_bytes, num_evaluators = _evaluators(config, accounting, hidden_size)
    samples = {"block": calibration.num_block_samples, "width": calibration.num_width_samples}
    sequences = {
        name: num_sequences(calibration.source, count, calibration.sequence_length)
        for name, count in samples.items()
    }
    batches = {name: -(-count // calibration.batch_size) for name, count in sequences.items()}
    lengths = {"sequence_length": calibration.sequence_length, "batch_size": calibration.batch_size}
    blocks = replace(found, stages=found.stages[:1])
    flops, block_flops = (
        search_flops(accounting, each, sequences, **lengths, num_evaluators=num_evaluators)
        for each in (found, blocks)
    )
    statistics = None
    if config.search.compensation != "none":
        statistics = planned_statistics(
            accounting,
            num_tokens=sequences["width"] * calibration.sequence_length,
            num_evaluators=num_evaluators,
            sequence_length=calibration.sequence_length,
        )
        flops = None if flops is None else flops + (statistics["flops"] or 0)
    tflops = (
        measured_tflops(Path(config.rate_of).expanduser())
        if config.rate_of
        else config.tflops_per_evaluator
    )
    report = {
        "model": display_name(config.model.path),
        "num_parameters": accounting.num_dense_parameters,
        "target_ratio": config.search.target_ratio,
        **targets_json(config.search.asked),
        **found.to_json(),
        "calibration": {
            name: {
                "num_sequences": count,
                "sequence_length": calibration.sequence_length,
                "estimated": calibration.source in TOKENS_PER_ROW,
            }
            for name, count in sequences.items()
        },
        "tasks_per_candidate": batches,
        "flops": flops,
        "dtype": dtype,
        "peak_bytes_per_evaluator": peak_bytes,
        "memory": serving(accounting, config.memory.load(calibration.sequence_length)),
        **({"statistics": statistics} if statistics else {}),
        "num_evaluators": num_evaluators,
        "tflops_per_evaluator": tflops,
        "hours": flops / (tflops * 1e12 * num_evaluators * 3600)
        if tflops and flops is not None
        else None,
    }
    return report, block_flops


def _evaluators(
    config: PlanConfig, accounting: Accounting, hidden_size: int
) -> tuple[str, int, int]:
    """Type and bytes of an evaluator, and how many there are: as many as a search would start on
    this machine, unless they are given; one of a cluster, which is not asked.

    Raises:
        InputError: more threads for each than this machine has cores.
    """
    calibration, cluster = config.calibration, config.cluster
    machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
    if cluster.kind != "ray":
        machine.require_cores(cluster.num_cpus_per_evaluator)
    gpus = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator)
    dtype = resolve_dtype(config.model.dtype, on_gpu=gpus > 0)
    needed = shape_evaluator_bytes(
        accounting,
        dtype,
        batch_tokens=calibration.batch_size * calibration.sequence_length,
        hidden_size=hidden_size,
        compensated=config.search.compensation != "none",
        by_divergence=STRATEGIES[config.search.strategy].by_divergence,
    )
    count = cluster.num_evaluators
    if count is None and cluster.kind == "local":
        count = machine.num_evaluators(
            num_gpus=gpus, num_cpus=cluster.num_cpus_per_evaluator, memory_bytes=needed
        )
    return dtype, needed, count or 1


def _search_table(report: Mapping[str, Any]) -> Table:
    rows = Table(
        title=(
            f"{report['model']}, {report['num_parameters'] / 1e9:.2f} G parameters, "
            + (
                f"less {in_words(None, report['targets'])}"
                if "targets" in report
                else f"to ratio {report['target_ratio']:g}"
            )
        ),
        title_justify="left",
    )
    rows.add_column("")
    for name in ("steps", "evaluations", "ends at ratio"):
        rows.add_column(name, justify="right")
    for stage in report["steps"]:
        steps, evaluations, ratio = (
            report[name][stage] for name in ("steps", "evaluations", "ratio")
        )
        rows.add_row(
            stage,
            *(f"{each['min']:,} to {each['max']:,}" for each in (steps, evaluations)),
            f"{ratio['min']:.4f} to {ratio['max']:.4f}",
        )
    if report.get("at_most"):
        rows.caption = LAZY_NOTE
    rows.add_section()
    if statistics := report.get("statistics"):
        rows.add_row(
            "statistics",
            "",
            f"{statistics['passes']} passes over {statistics['num_tokens']:,} tokens",
            f"{statistics['bytes'] / 1e9:.1f} GB on disk",
        )
    rows.add_row("FLOPs", "", _flops(report), "")
    rows.add_row(
        f"memory of an evaluator ({report['dtype']})",
        "",
        f"{report['peak_bytes_per_evaluator'] / 1e9:.1f} GB",
        "",
    )
    for row in serving_rows(report["memory"]):
        rows.add_row(*row)
    count = report["num_evaluators"]
    rows.add_row(f"time on {count} evaluator{'s' if count > 1 else ''}", "", _time(report), "")
    return rows


def _sweep_table(report: Mapping[str, Any]) -> Table:
    stages = list(report["evaluations"])
    rows = Table(
        title=f"{len(report['points'])} points: evaluations by stage", title_justify="left"
    )
    rows.add_column("point")
    for name in (*(stage.replace("_", " ") for stage in stages), "FLOPs", "time"):
        rows.add_column(name, justify="right")
    if any(point.get("at_most") for point in report["points"]):
        rows.caption = LAZY_NOTE
    for each in (*report["points"], report):
        if each is report:
            rows.add_section()
        ranges = [each["evaluations"].get(stage) for stage in stages]
        cells = [f"{found['min']:,} to {found['max']:,}" if found else "" for found in ranges]
        rows.add_row(
            each.get("name", "all, what they share paid for once"),
            *cells,
            _flops(each),
            _time(each),
        )
    return rows


def _flops(report: Mapping[str, Any]) -> str:
    return NOT_KNOWN if report["flops"] is None else f"{report['flops']:.2e}"


def _time(report: Mapping[str, Any]) -> str:
    hours = report["hours"]
    if report["flops"] is None:
        return f"{NOT_KNOWN}: FLOPs of this architecture are not counted"
    return (
        "unknown: give tflops_per_evaluator or rate_of" if hours is None else duration(hours * 3600)
    )
