"""What was planned of a search, beside what it took."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pipelines.config.prune import PruneConfig
from pipelines.plan.estimate import computed, search_flops, search_plan, trajectory_flops
from pruning.costs.accounting import Accounting
from pruning.search.settings import SearchSettings
from pruning.search.stages import StageName

log = logging.getLogger(__name__)


def plan_vs_actual(
    config: PruneConfig,
    accounting: Accounting,
    settings: SearchSettings,
    lines: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """For summary.json: `plan`, the ranges that `pipelines.plan` gives for these settings, and
    `taken`, what there is of them in the trajectory.

    Both are None if they cannot be made: a search that is done is not spoilt by its statistics.

    Args:
        lines: of the whole trajectory.
        summary: what else is in summary.json.
    """
    try:
        return {
            "plan": _planned(config, accounting, settings, summary),
            "taken": _taken(accounting, lines, summary),
        }
    except Exception as error:  # noqa: BLE001 - hours of search are behind it
        log.warning("the plan cannot be set beside what the search took: %s", error)
        return {"plan": None, "taken": None}


def plan_vs_actual_row(summary: Mapping[str, Any], stage: StageName) -> tuple[str, str] | None:
    """What one stage took, and what was planned, in words; None if there is nothing to say."""
    plan, taken = summary["plan"], summary["taken"]
    if plan is None or not (
        taken["evaluations"][stage] or (stage in plan["steps"] and plan["steps"][stage]["max"])
    ):
        return None
    parts = ["steps", "evaluations"]
    if stage in plan["steps"] and not (taken["steps"][stage] or plan["steps"][stage]["max"]):
        parts.remove("steps")  # shapes that an allocation measures before its first step
    ranges = [_words(plan[name][stage]) for name in parts]
    counts = [f"{taken[name][stage]:,}" for name in parts]
    return f"took {', '.join(counts)}", f"planned {', '.join(ranges)}"


def _planned(
    config: PruneConfig,
    accounting: Accounting,
    settings: SearchSettings,
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    found, calibration = search_plan(accounting, settings), config.calibration
    flops = search_flops(
        accounting,
        found,
        {name: summary["calibration"][name]["num_sequences"] for name in ("block", "width")},
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        num_evaluators=max(1, summary["num_evaluators"]),
    )
    plan = found.to_json()
    return {"steps": plan["steps"], "evaluations": plan["evaluations"], "flops": flops}


def _taken(
    accounting: Accounting, lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Shapes that an allocation measured count as evaluations of the block stage, as in the plan;
    `flops` are those of the steps. `tflops_per_evaluator` is None where scores came from the store,
    which says nothing about speed, and where the FLOPs are not known.
    """
    steps = Counter(line["stage"] for line in lines)
    evaluations = {
        stage: sum(len(line["candidates"]) for line in lines if line["stage"] == stage)
        for stage in get_args(StageName)
    }
    evaluations["block"] += summary.get("allocation", {}).get("evaluations", 0)
    flops = trajectory_flops(accounting, lines, summary["calibration"])
    evaluator_s = sum(line["seconds"] for line in lines) * summary["num_evaluators"]
    return {
        "steps": {stage: steps[stage] for stage in get_args(StageName)},
        "evaluations": evaluations,
        "flops": flops,
        "tflops_per_evaluator": flops / (evaluator_s * 1e12)
        if flops is not None and evaluator_s and computed(summary["evaluations"])
        else None,
    }


def _words(found: Mapping[str, int]) -> str:
    return (
        f"{found['min']:,}"
        if found["min"] == found["max"]
        else f"{found['min']:,} to {found['max']:,}"
    )
