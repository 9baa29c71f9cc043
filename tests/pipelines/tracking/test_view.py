"""The preset view of MLflow's charts, as data; tests/browser looks at it."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient

from pipelines.tracking.view import preset_view, view_of_sweep
from tests.pipelines.command import Outcome


def state(view: tuple[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads(view[1])["state"])
    return found


def test_one_large_chart_comes_first_then_layers_then_time() -> None:
    found = state(preset_view())
    assert [section["name"] for section in found["compareRunSections"]] == [
        "Perplexity against ratio",
        "Held-out perplexity of what came out",
        "What remains of each layer (%)",
        "Which layer was cut at which step",
        "Where the time went (seconds)",
    ]
    first, *others = found["compareRunSections"]
    assert first["columns"] == 1
    assert all(first["cardHeight"] > other["cardHeight"] for other in others)
    [large] = [
        each for each in found["compareRunCharts"] if each["metricSectionId"] == first["uuid"]
    ]
    assert large["metricKey"] == "prune/perplexity"
    assert found["globalLineChartConfig"]["selectedXAxisMetricKey"] == "prune/ratio"
    sweep = state(view_of_sweep("sweep", "id", "key"))
    assert sweep["compareRunCharts"] == found["compareRunCharts"]
    assert "id" in sweep["searchFilter"]


def test_charts_are_of_metrics_that_a_search_sends(ended: Outcome) -> None:
    client = MlflowClient(f"sqlite:///{ended.folder.parent}/mlflow.db")
    sent = client.get_run(ended.read("run.json")["mlflow_run_id"]).data.metrics
    for chart in state(preset_view())["compareRunCharts"]:
        names = chart.get("selectedMetricKeys") or [chart.get("metricKey")]
        if chart["type"] == "SCATTER":
            names = [chart["xaxis"]["key"], chart["yaxis"]["key"]]
        assert set(names) <= set(sent), chart["uuid"]
