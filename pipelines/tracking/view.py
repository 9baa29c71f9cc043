"""Preset views of MLflow's charts, and the links to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.tracking.metrics import COLUMNS, PARENT, RATIO, RESULT_RATIO, SHARED_VIEW

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
        "searchFilter": f"tags.`{PARENT}` = '{run_id}'",
        "orderByKey": f"metrics.`{RESULT_RATIO}`",
        "orderByAsc": False,
    }
    return _shared_view(key, f"{name}, against ratio", points)


def _shared_view(key: str, name: str, facets: Mapping[str, Any]) -> tuple[str, str]:
    columns = [f"{kind}.`{name}`" for kind, names in COLUMNS.items() for name in names]
    charts = {"xAxisKey": "metric", "selectedXAxisMetricKey": RATIO, "lineSmoothness": 0}
    state = {"globalLineChartConfig": charts, "selectedColumns": columns, **facets}
    return f"{SHARED_VIEW}.{key}", json.dumps(
        {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    )


def charts_link(server: str, experiment_id: str | None, view: str = VIEW) -> str:
    """The page of an experiment that shows its runs as charts over ratio."""
    return (
        f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={view}"
    )
