"""Every metric name in MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def step_metrics(line: Mapping[str, Any]) -> dict[str, float | int | None]:
    """The metrics of one journal line, under the names that MLflow shows in the section `prune`."""
    names = (
        "perplexity",
        "nll",
        "ratio",
        "num_parameters",
        "flops_per_token",
        "margin",
        "seconds",
        "evaluations",
    )
    found = {f"prune/{name}": line[name] for name in names} | {
        "prune/num_candidates": len(line["candidates"])
    }
    return found | {
        "prune/margin_stderr": line.get("margin_stderr")
    }  # which journals from before it was recorded lack


def metrics(report: Mapping[str, Any]) -> dict[str, float | None]:
    """As MLflow stores them: `eval/TASK/METRIC` and `eval/TEXT/token_perplexity`; the dense model's
    in `eval_dense/`, if there is a pruned one.
    """
    found = _metrics_of("eval", report)
    if report["shape"] is not None and report["dense"] is not None:
        found |= _metrics_of("eval_dense", report["dense"])
    cost = report["cost"] or {}
    for section, values in (
        ("eval_cost", cost.get("pruned") or cost.get("dense")),
        ("eval_cost_ratio", cost.get("ratio")),
    ):
        for name, value in (values or {}).items():
            number = value["median"] if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)):
                found[f"{section}/{name}"] = float(number)
    return {
        name: value for name, value in found.items() if value is not None and math.isfinite(value)
    }


def _metrics_of(section: str, measured: Mapping[str, Any]) -> dict[str, float | None]:
    found = {
        f"{section}/{name}/token_perplexity": value
        for name, value in measured["perplexity"].items()
    }
    for name, values in measured["tasks"].items():
        found |= {
            f"{section}/{name}/{metric.replace(',', ':')}": value
            for metric, value in values.items()
        }
    return found | {f"{section}/average": measured["average"]}


def sweep_metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    """One point as a step of the sweep's own MLflow run."""
    return {"sweep/ratio": row["ratio"]} | {
        f"sweep/{name}": value for name, value in row["values"].items()
    }
