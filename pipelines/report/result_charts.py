"""Charts of the models that came out: how good they are at which ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pipelines.report.best import Best
from pipelines.report.chart_style import color_of, legend_label, marker, new_figure
from pipelines.report.data import ReportRun
from pipelines.report.fronts import ACCURACY, ParetoGroup, ParetoPoint

_BEST = "#009E73"
_LOG_FROM = 5.0
"""Where the highest value of a front is this many times the lowest, its axis is logarithmic."""
_LOG_TICKS = [first * 10**power for power in range(16) for first in (1, 2, 5)]


def pareto(group: ParetoGroup, runs: Sequence[ReportRun], best: Best | None = None) -> go.Figure:
    """Value against ratio, or time: every run under its key, those on the front joined, and a ring
    around the best.
    """
    accuracy, scale = group.metric == ACCURACY, 1.0 if group.time else 100.0
    in_percent = 100.0 if accuracy else 1.0
    x_title = f"milliseconds, {group.time}" if group.time else "parameters removed (%)"
    figure = new_figure(x_title, f"{group.metric} (%)" if accuracy else group.metric)
    front = sorted((point for point in group.points if point.on_front), key=lambda each: each.size)
    figure.add_scatter(
        x=[scale * point.size for point in front],
        y=[in_percent * point.value for point in front],
        name="not beaten by another",
        mode="lines",
        hoverinfo="skip",
        line={"color": "#9ca3af", "width": 2},
    )
    if best is not None and best.point is not None:
        figure.add_scatter(
            x=[scale * best.point.size],
            y=[in_percent * best.point.value],
            name="best",
            mode="markers",
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 22, "color": _BEST, "line": {"width": 3}},
        )
    unit, order = "ms" if group.time else "% removed", _ranks(group)
    for point in group.points:
        figure.add_scatter(
            x=[scale * point.size],
            y=[in_percent * point.value],
            error_y={
                "type": "data",
                "array": [None if point.stderr is None else in_percent * point.stderr],
                "thickness": 1.5,
                "width": 5,
            },
            mode="markers+text",
            text=[_key(point, best)],
            textposition=_position(group, point, best, order[point]),
            cliponaxis=False,
            name=legend_label(point.run) if point.run else "dense model",
            marker=_marker(point, runs),
            hovertemplate=f"%{{x:.4g}} {unit}: %{{y:.4g}}",
        )
    figure.update_layout(showlegend=False)
    return _with_room(figure, group, in_percent)


def _ranks(group: ParetoGroup) -> dict[ParetoPoint, int]:
    """By value: neighbours have their keys on different sides."""
    ordered = sorted(group.points, key=lambda point: point.value)
    return {point: rank for rank, point in enumerate(ordered)}


def _with_room(figure: go.Figure, group: ParetoGroup, scale: float) -> go.Figure:
    """With error bars whole, and the label of the best run between the points and the axis."""
    values = [point.value for point in group.points]
    bars = [(point.value, point.stderr or 0.0) for point in group.points]
    low = min(value - bar if value > bar else value for value, bar in bars)
    high = max(value + bar for value, bar in bars)
    is_log = max(values) > _LOG_FROM * min(values) > 0
    start, end = (math.log10(scale * each) if is_log else scale * each for each in (low, high))
    span = (end - start) or 0.1
    below, above = (0.25, 0.08) if group.lower_is_better else (0.08, 0.25)
    figure.update_yaxes(range=[start - below * span, end + above * span])
    return figure.update_yaxes(type="log", tickvals=_LOG_TICKS) if is_log else figure


def _key(point: ParetoPoint, best: Best | None) -> str:
    """Its run, and of the best one outside of the ring that it is."""
    if point.run is None:
        return "dense"
    if best is None or best.point is not point:
        return f"  {point.run.key}  "
    return f"<br><b>{point.run.key}, {'leads' if best.near else 'best'}</b><br>"


def _position(group: ParetoGroup, point: ParetoPoint, best: Best | None, rank: int) -> str:
    """Of the dense and the best one off the line between them."""
    off = ("top center", "bottom center")
    if point.run is None or (best is not None and best.point is point):
        return off[group.lower_is_better == (point.run is not None)]
    return ("middle left", "middle right")[rank % 2]


def _marker(point: ParetoPoint, runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Open ones for what only is there to compare with."""
    if point.run is None:
        return {"color": "#111827", "symbol": "hexagram-open", "size": 12, "line": {"width": 2}}
    index = runs.index(point.run)
    shape, width = (f"{marker(index)}-open", 2) if point.run.is_control else (marker(index), 0)
    return {"color": color_of(index), "symbol": shape, "size": 10, "line": {"width": width}}


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
