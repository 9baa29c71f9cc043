"""`multipruner plan`: what a search or a sweep would take, from the model's configuration
alone: steps, evaluations, FLOPs, memory, hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig

from pipelines.cli.console import console, log_to, print_line
from pipelines.cli.launch import freeze_gc
from pipelines.config.grid import plain_grid, points_of
from pipelines.config.overrides import check_axes, composed, option_of
from pipelines.config.plan import PlanConfig
from pipelines.config.point_problems import PointProblems
from pipelines.plan.rate import Rates
from pipelines.plan.report import SearchReport, search_report
from pipelines.plan.sweep_plan import PointPlan, evaluations_together, flops_together
from pipelines.plan.tables import plan_table
from pipelines.runs.files import PLAN
from pipelines.runs.folder import RunFolder
from pipelines.runs.targets import search_settings
from pipelines.runs.timing import Timing
from pruning.canonical_json import dump_json
from pruning.costs.accounting import Accounting
from pruning.costs.known_sizes import sizes_of
from pruning.costs.sizes import DenseSizes
from pruning.errors import InputError
from pruning.models.display_name import display_name
from pruning.search.strategies import strategy_of


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
        found = _search_report(config)
        return found.with_rate(Rates().of(config, found))
    return _sweep_report(
        grid, [override for override in overrides if option_of(override) != "grid"]
    )


def _search_report(config: PlanConfig) -> SearchReport:
    model = config.model
    sizes = _sizes(model.path, model.revision, trust_remote_code=model.trust_remote_code)
    accounting = Accounting(sizes)
    timing = Timing.read(config.latency) if config.latency else None
    settings = search_settings(config, accounting, timing)
    shapes = strategy_of(settings).first_shapes(accounting)
    if timing is not None:
        timing.require_blocks(accounting.dense, display_name(model.path))
        timing.require_sizes(shapes, "this search")
    return search_report(config, accounting, settings, hidden_size=sizes.hidden_size)


@lru_cache  # all points of a sweep have one model
def _sizes(path: str, revision: str | None, *, trust_remote_code: bool) -> DenseSizes:
    with freeze_gc():  # counting imports torch, unless it was done before
        return sizes_of(path, revision=revision, trust_remote_code=trust_remote_code)


def _sweep_report(grid: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Every point, and all together.

    Raises:
        InputError: what is wrong with any point, all at once.
    """
    points, reports = points_of(grid), list[tuple[PlanConfig, SearchReport]]()
    problems, names = PointProblems(points), [option_of(override) for override in given]
    for point in points:
        try:
            raw = composed("plan", [*given, *point.overrides])
            config = PlanConfig.of_new(raw, list(point.settings), names)
            reports.append((config, _search_report(config)))
        except InputError as error:
            problems.add(point, error)
    problems.add_unused([config.search for config, _ in reports], names)
    problems.check()
    rates = Rates()
    found = [
        PointPlan(config, each.with_rate(rates.of(config, each)), each.block_flops)
        for config, each in reports
    ]
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
