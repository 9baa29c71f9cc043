"""Charts of the models that came out: how good they are at which ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from pipelines.report.analysis import ParetoPoint
from pipelines.report.chart_style import color_of, legend_label, log_if_wide, marker, new_figure
from pipelines.report.data import ReportRun


def pareto(points: Sequence[ParetoPoint], runs: Sequence[ReportRun], y_title: str) -> go.Figure:
    """Value against ratio. Points on the front have a ring and are joined."""
    figure = new_figure("parameters removed (%)", y_title)
    front = sorted((point for point in points if point.on_front), key=lambda point: point.ratio)
    figure.add_scatter(
        x=[100 * point.ratio for point in front],
        y=[point.value for point in front],
        name=("not beaten by another"),
        mode="lines+markers",
        hoverinfo="skip",
        line={"color": "#9ca3af", "width": 2},
        marker={"symbol": "circle-open", "size": 19, "color": "#6b7280", "line": {"width": 1.5}},
    )
    for point in points:
        index = runs.index(point.run) if point.run is not None else 0
        style = {
            "color": color_of(index),
            "symbol": marker(index),
            "size": 10,
        }
        figure.add_scatter(
            x=[100 * point.ratio],
            y=[point.value],
            mode="markers",
            name=legend_label(point.run) if point.run else "dense model",
            marker=style
            if point.run
            else {"color": "#111827", "symbol": "hexagram-open", "size": 12, "line": {"width": 2}},
            hovertemplate="%{x:.2f} % removed: %{y:.4g}",
        )
    return log_if_wide(figure, [point.value for point in points])


def accuracies(
    runs: Sequence[ReportRun], measured: Sequence[ReportRun], chosen: Mapping[str, str]
) -> go.Figure:
    """Zero-shot accuracy of each task with one standard error, dense (open) beside pruned (filled).

    Args:
        runs: all of the page, by which they are coloured.
        chosen: the metric to show of each task.
    """
    figure = new_figure("", "accuracy (%)")
    figure.update_xaxes(type="category")
    ends: list[float] = []
    for index, run in ((runs.index(run), run) for run in measured):
        assert run.evaluation is not None
        scores = [score for score in run.evaluation.tasks if chosen.get(score.task) == score.metric]
        for which, suffix, name in (
            ("dense", "-open", f"{legend_label(run)}, dense"),
            ("pruned", "", f"{legend_label(run)}, pruned"),
        ):
            shown = [
                (score.task, getattr(score.score, which), getattr(score.stderr, which))
                for score in scores
                if getattr(score.score, which) is not None
            ]
            if shown:
                ends += [
                    100 * (value + side * (error or 0))
                    for _, value, error in shown
                    for side in (-1, 1)
                ]
                figure.add_scatter(
                    x=[task for task, _, _ in shown],
                    y=[100 * value for _, value, _ in shown],
                    name=name,
                    mode="markers",
                    error_y={
                        "type": "data",
                        "array": [None if error is None else 100 * error for _, _, error in shown],
                        "thickness": 1.2,
                        "width": 4,
                    },
                    marker={
                        "color": color_of(index),
                        "symbol": marker(index) + suffix,
                        "size": 9,
                    },
                    hovertemplate="%{x}: %{y:.1f} %",
                )
    figure.update_yaxes(range=[min(ends) - 3, max(ends) + 3])
    return figure.update_layout(scattermode="group", scattergap=0.4)
