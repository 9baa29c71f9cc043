"""Preset views of MLflow's charts, and the links to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

VIEW = "multipruner"
"""Key of the preset view in MLflow."""


def preset_view() -> tuple[str, str]:
    """The experiment tag behind Views -> Against ratio: ratio across in every chart, and the
    columns that compare runs.

    MLflow does not document it. A version that does not know it shows its usual page.
    """
    return _shared_view(VIEW, "Against ratio", {})


def view_of_sweep(name: str, run_id: str, key: str) -> tuple[str, str]:
    """The same with the points of one sweep.

    In any order but that of dates MLflow shows them beside one another instead of folded into their
    parent.
    """
    points = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": "metrics.`result/ratio`",
        "orderByAsc": False,
    }
    return _shared_view(key, f"{name}, against ratio", points)


def _shared_view(key: str, name: str, facets: Mapping[str, Any]) -> tuple[str, str]:
    columns = [
        "metrics.`result/ratio`",
        "metrics.`result/heldout_perplexity`",
        "metrics.`result/heldout_perplexity_dense`",
    ]
    columns += [
        "params.`search.target_ratio`",
        "params.`search.distribution`",
        "params.`search.importance`",
    ]
    charts = {"xAxisKey": "metric", "selectedXAxisMetricKey": "prune/ratio", "lineSmoothness": 0}
    state = {"globalLineChartConfig": charts, "selectedColumns": columns, **facets}
    return f"mlflow.sharedViewState.{key}", json.dumps(
        {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    )


def charts_link(server: str, experiment_id: str | None, view: str = VIEW) -> str:
    """The page of an experiment that shows its runs as charts over ratio."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={view}"
