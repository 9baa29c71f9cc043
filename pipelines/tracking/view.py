"""Preset views of MLflow's charts, and the links to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.tracking.metrics import (
    COLUMNS,
    HELDOUT,
    LAYERS,
    PARENT,
    PERPLEXITY,
    RATIO,
    REMOVED_LAYER,
    RESULT_RATIO,
    SECONDS,
    SHARED_VIEW,
    TIMES,
)

VIEW = "multipruner"
"""Key of the preset view in MLflow."""


def preset_view() -> tuple[str, str]:
    """The experiment tag behind Views -> Against ratio: one large chart of perplexity, then what
    was removed, then where the time went, all else below; and the columns that compare runs.

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
    state = {
        "globalLineChartConfig": charts,
        "selectedColumns": columns,
        "compareRunSections": _sections(),
        "compareRunCharts": _charts(),
        "isAccordionReordered": True,  # ours first, and MLflow's own below
        **facets,
    }
    return f"{SHARED_VIEW}.{key}", json.dumps(
        {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    )


_SECTIONS = (
    ("perplexity", "Perplexity against ratio", 1, 560),
    ("result", "Held-out perplexity of what came out", 1, 420),
    ("layers", "What remains of each layer (%)", 2, 360),
    ("removed", "Which layer was cut at which step", 1, 360),
    ("time", "Where the time went (seconds)", 2, 360),
)
"""Key, title, charts beside one another, and pixels of each; MLflow adds sections of its own for
the metrics that are in none of them.
"""


def _sections() -> list[dict[str, Any]]:
    return [
        {
            "uuid": key,
            "name": title,
            "columns": columns,
            "cardHeight": height,
            "display": True,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
        for key, title, columns, height in _SECTIONS
    ]


def _charts() -> list[dict[str, Any]]:
    """As MLflow's page keeps what a person has set up there."""
    by_ratio = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "displayPoints": True}
    by_step = by_ratio | {"xAxisKey": "step", "useGlobalXaxisKey": False}
    return [
        _chart("LINE", "perplexity", PERPLEXITY, **by_ratio),
        _chart(
            "SCATTER",
            "result",
            "held-out perplexity against ratio",
            xaxis={"key": RESULT_RATIO, "type": "METRIC"},
            yaxis={"key": HELDOUT, "type": "METRIC"},
            runsCountToCompare=100,
        ),
        *(_chart("LINE", "layers", name, **by_step) for name in LAYERS.values()),
        _chart("LINE", "removed", REMOVED_LAYER, **by_step),
        _chart("LINE", "time", SECONDS, **by_step),
        _chart("BAR", "time", TIMES["block"], selectedMetricKeys=list(TIMES.values())),
    ]


def _chart(kind: str, section: str, name: str, **options: Any) -> dict[str, Any]:
    of_metric = {} if kind == "SCATTER" else {"metricKey": name}
    return {
        "type": kind,
        "uuid": f"multipruner-{name}",
        "metricSectionId": section,
        "displayName": name,
        "deleted": False,
        "isGenerated": False,
        **of_metric,
        **options,
    }


def charts_link(server: str, experiment_id: str | None, view: str = VIEW) -> str:
    """The page of an experiment that shows its runs as charts over ratio."""
    return (
        f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={view}"
    )
