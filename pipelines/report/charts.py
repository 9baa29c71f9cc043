"""The figures of a report, made with Plotly.

Each run has a colour, a marker and a dash of its own; what the figures show is also in the page's
tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipelines.report.analysis import STAGES, BlockVotes, Overlap, ParetoPoint
from pipelines.report.data import NEAR_TIE_STDERRS, ReportRun, ReportStep

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, which is lost
on white.
"""
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# 7 colours, 8 markers, 6 dashes: the first 168 runs each have their own three.

_LOG_FROM = 10.0
"""Where the highest value is this many times the lowest, the axis is logarithmic."""
_LOWEST_STDERRS = 0.01
_CLEAR, _TIE, _UNKNOWN, _LIMIT = "#0072B2", "#D55E00", "#6b7280", "#6b7280"
_LEFT = (
    (0.0, "#1a1a1a"),
    (0.001, "#1a1a1a"),
    (0.0011, "#0b3c6f"),
    (0.5, "#4d8fc7"),
    (0.999, "#cfe3f3"),
    (0.9991, "#edf2f7"),
    (1.0, "#edf2f7"),
)
"""Share that is left: nothing is black, everything almost white."""


def color(run: ReportRun, runs: Sequence[ReportRun]) -> str:
    """The colour of a run on the whole page."""
    return COLORS[runs.index(run) % len(COLORS)]


def trajectories(runs: Sequence[ReportRun], set_name: str) -> go.Figure:
    """Perplexity against ratio of the steps that were scored on one calibration set; the dense
    model at 0 where its perplexity there is known.
    """
    figure = _figure("parameters removed (%)", "calibration perplexity")
    drawn: list[float] = []
    for index, run in enumerate(runs):
        steps = [
            step for step in run.steps if step.set_name == set_name and step.perplexity is not None
        ]
        dense = run.dense.get(set_name)
        if not steps:
            continue
        x, y = [100 * step.ratio for step in steps], [step.perplexity for step in steps]
        said = [f"step {step.number}: {step.removal}" for step in steps]
        symbols, sizes = [MARKERS[index % len(MARKERS)]] * len(steps), [7] * len(steps)
        if dense is not None:
            x, y, said, symbols, sizes = (
                [0.0, *x],
                [dense, *y],
                ["dense model", *said],
                [f"{symbols[0]}-open", *symbols],
                [11, *sizes],
            )
        drawn += [value for value in y if value is not None]
        figure.add_scatter(
            x=x,
            y=y,
            customdata=said,
            name=_label(run),
            mode="lines+markers",
            line=_line(index),
            marker={"symbol": symbols, "size": sizes},
            hovertemplate="%{customdata}<br>%{x:.2f} % removed, perplexity %{y:.3f}",
        )
    return _log_if_wide(figure, drawn)


def what_is_left(run: ReportRun) -> go.Figure:
    """Layers against steps: the share that is left of each attention block and each MLP after each
    step; step 0 is the dense model.
    """
    dense, shapes = run.dense_shape, [run.dense_shape, *(step.shape for step in run.steps)]
    said = ["dense model", *(f"step {step.number}: {step.removal}" for step in run.steps)]
    layers = list(range(len(dense.layers)))
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        subplot_titles=("attention: KV heads", "MLP: channels"),
    )
    for row, unit in ((1, "kv_heads"), (2, "mlp_channels")):
        left = [
            [
                100 * getattr(shape.layers[layer], unit) / getattr(dense.layers[layer], unit)
                for shape in shapes
            ]
            for layer in layers
        ]
        figure.add_heatmap(
            x=list(range(len(shapes))),
            y=layers,
            z=left,
            customdata=[said] * len(layers),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=row,
            col=1,
            hovertemplate="%{customdata}<br>layer %{y}: %{z:.0f} % left<extra></extra>",
        )
    for before, after in zip(run.steps, run.steps[1:], strict=False):
        if before.stage != after.stage:
            figure.add_vline(
                x=before.number + 0.5, line={"color": _TIE, "width": 1.5, "dash": "dot"}
            )
    bar = {
        "title": {"text": "left (%)"},
        "tickvals": [0, 25, 50, 75, 100],
        "thickness": 12,
        "outlinewidth": 0,
    }
    _style(
        figure,
        coloraxis={
            "colorscale": [list(stop) for stop in _LEFT],
            "cmin": 0,
            "cmax": 100,
            "colorbar": bar,
        },
    )
    figure.update_yaxes(title_text="layer", showgrid=False)
    figure.update_xaxes(showgrid=False, dtick=_tick(len(shapes)))
    figure.update_xaxes(title_text="step", row=2, col=1)
    figure.update_annotations(font={"size": 12})
    figure.update_layout(margin={"t": 26})
    return figure


def margins(run: ReportRun) -> go.Figure:
    """By how much the second best candidate lost at each step, with two standard errors either way."""
    figure = _figure("step", "margin (NLL, nats per token)")
    groups: tuple[tuple[str, bool | None, str, str], ...] = (
        ("clear", False, _CLEAR, "circle"),
        ("near-tie", True, _TIE, "x"),
        ("standard error not known", None, _UNKNOWN, "circle-open"),
    )
    for name, near_tie, shade, symbol in groups:
        steps = [
            step for step in run.steps if step.margin is not None and step.near_tie is near_tie
        ]
        if steps:
            bars = [
                None if step.margin_stderr is None else NEAR_TIE_STDERRS * step.margin_stderr
                for step in steps
            ]
            figure.add_scatter(
                x=[step.number for step in steps],
                y=[step.margin for step in steps],
                customdata=[_second(step) for step in steps],
                name=name,
                mode="markers",
                marker={"color": shade, "symbol": symbol, "size": 9},
                error_y={
                    "type": "data",
                    "array": bars,
                    "thickness": 1.2,
                    "width": 3,
                    "color": shade,
                },
                hovertemplate="%{customdata}<br>margin %{y:.5f}",
            )
    figure.add_hline(y=0, line={"color": "#111827", "width": 1})
    figure.update_xaxes(dtick=_tick(len(run.steps)), range=[0.3, len(run.steps) + 0.7])
    return figure.update_layout(showlegend=True)


def fragility(runs: Sequence[ReportRun]) -> go.Figure:
    """The margins of all runs in their standard errors; what lies below the line is a near-tie."""
    figure = _figure("step", "margin (standard errors)")
    last, highest = 1, 2 * NEAR_TIE_STDERRS
    for index, run in enumerate(runs):
        steps = [
            (step, step.num_stderrs)
            for step in run.steps
            if step.num_stderrs is not None and math.isfinite(step.num_stderrs)
        ]
        if steps:
            last, highest = (
                max(last, len(run.steps)),
                max(highest, *(1.3 * size for _, size in steps)),
            )
            figure.add_scatter(
                x=[step.number for step, _ in steps],
                y=[max(size, _LOWEST_STDERRS) for _, size in steps],
                customdata=[_second(step) for step, _ in steps],
                name=_label(run),
                mode="lines+markers",
                line=_line(index) | {"width": 1},
                marker={"symbol": MARKERS[index % len(MARKERS)], "size": 8},
                hovertemplate="%{customdata}<br>%{y:.2f} standard errors",
            )
    figure.add_hrect(
        y0=_LOWEST_STDERRS / 2,
        y1=NEAR_TIE_STDERRS,
        fillcolor=_TIE,
        opacity=0.08,
        line_width=0,
        layer="below",
    )
    note = {
        "text": "near-ties",
        "showarrow": False,
        "xref": "paper",
        "x": 0.995,
        "y": math.log10(NEAR_TIE_STDERRS),
        "xanchor": "right",
        "yanchor": "top",
    }
    figure.add_annotation(**note, font={"color": "#9a3f00", "size": 12})
    figure.add_hline(y=NEAR_TIE_STDERRS, line={"color": _TIE, "width": 1, "dash": "dash"})
    lowest = min((value for trace in figure.data for value in trace.y), default=1.0)
    figure.update_yaxes(type="log", dtick=1, range=[math.log10(lowest / 1.5), math.log10(highest)])
    figure.update_xaxes(dtick=_tick(last))
    return figure


def votes(found: Sequence[BlockVotes], num_layers: int, num_runs: int) -> go.Figure:
    """How many runs removed each block."""
    figure = _figure("layer", "runs that removed it")
    count = {vote.block: len(vote.steps) for vote in found}
    for kind, name, shade, pattern in (
        ("attention", "attention block", "#0072B2", ""),
        ("mlp", "MLP block", "#E69F00", "/"),
    ):
        counts = [count.get((kind, layer), 0) for layer in range(num_layers)]  # type: ignore[arg-type]
        marker = {
            "color": shade,
            "pattern": {
                "shape": pattern,
                "fgcolor": "#111827",
                "solidity": 0.2,
                "fillmode": "overlay",
            },
        }
        figure.add_bar(
            x=list(range(num_layers)),
            y=counts,
            name=name,
            marker=marker,
            hovertemplate=f"{name} of layer %{{x}}: %{{y}} of {num_runs} runs",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(range=[0, num_runs * 1.04], dtick=_tick(num_runs))
    figure.update_xaxes(dtick=_tick(num_layers))
    return figure


def overlap_matrix(found: Sequence[Overlap], runs: Sequence[ReportRun]) -> go.Figure:
    """Jaccard overlap of the removed blocks of every two runs."""
    keys = [run.key for run in runs]
    value = {(each.first, each.second): each.at_end for each in found} | {
        (each.second, each.first): each.at_end for each in found
    }
    cells = [
        [1.0 if row == column else value.get((row, column)) for column in keys] for row in keys
    ]
    said = [["" if cell is None else f"{cell:.2f}" for cell in row] for row in cells]
    figure = _figure("run", "run")
    figure.add_heatmap(
        x=keys,
        y=keys,
        z=cells,
        zmin=0,
        zmax=1,
        xgap=2,
        ygap=2,
        text=said,
        texttemplate="%{text}",
        hovertemplate=("%{y} and %{x}: %{text}<extra></extra>"),
        colorscale=[[0, "#ffffff"], [1, "#4d8fc7"]],
        colorbar={"title": {"text": "overlap"}, "thickness": 12, "outlinewidth": 0},
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def pareto(points: Sequence[ParetoPoint], runs: Sequence[ReportRun], y_title: str) -> go.Figure:
    """Value against ratio. Points on the front have a ring and are joined."""
    figure = _figure("parameters removed (%)", y_title)
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
            "color": COLORS[index % len(COLORS)],
            "symbol": MARKERS[index % len(MARKERS)],
            "size": 10,
        }
        figure.add_scatter(
            x=[100 * point.ratio],
            y=[point.value],
            mode="markers",
            name=_label(point.run) if point.run else "dense model",
            marker=style
            if point.run
            else {"color": "#111827", "symbol": "hexagram-open", "size": 12, "line": {"width": 2}},
            hovertemplate="%{x:.2f} % removed: %{y:.4g}",
        )
    return _log_if_wide(figure, [point.value for point in points])


def accuracies(
    runs: Sequence[ReportRun], measured: Sequence[ReportRun], chosen: Mapping[str, str]
) -> go.Figure:
    """Zero-shot accuracy of each task with one standard error, dense (open) beside pruned (filled).

    Args:
        runs: all of the page, by which they are coloured.
        chosen: the metric to show of each task.
    """
    figure = _figure("", "accuracy (%)")
    figure.update_xaxes(type="category")
    ends: list[float] = []
    for index, run in ((runs.index(run), run) for run in measured):
        assert run.evaluation is not None
        scores = [score for score in run.evaluation.tasks if chosen.get(score.task) == score.metric]
        for which, suffix, name in (
            ("dense", "-open", f"{_label(run)}, dense"),
            ("pruned", "", f"{_label(run)}, pruned"),
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
                        "color": COLORS[index % len(COLORS)],
                        "symbol": MARKERS[index % len(MARKERS)] + suffix,
                        "size": 9,
                    },
                    hovertemplate="%{x}: %{y:.1f} %",
                )
    figure.update_yaxes(range=[min(ends) - 3, max(ends) + 3])
    return figure.update_layout(scattermode="group", scattergap=0.4)


def _figure(x_title: str, y_title: str) -> go.Figure:
    figure = _style(go.Figure())
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def _style(figure: go.Figure, **layout: Any) -> go.Figure:
    figure.update_layout(
        template="none",
        margin={"l": 58, "r": 12, "t": 12, "b": 52},
        font={"family": ("system-ui, sans-serif"), "size": 13, "color": "#1f2937"},
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
        },
        hoverlabel={"align": "left"},
        **layout,
    )
    axis = {"gridcolor": "#e5e7eb", "zeroline": False, "automargin": True, "title": {"standoff": 8}}
    figure.update_xaxes(**axis)
    return figure.update_yaxes(**axis)


def _log_if_wide(figure: go.Figure, values: Sequence[float]) -> go.Figure:
    if values and max(values) > _LOG_FROM * min(values) > 0:
        figure.update_yaxes(type="log", dtick="D2")
    return figure


def _label(run: ReportRun) -> str:
    """For legends. Plotly reads tags in its texts, so a name that looks like one is escaped."""
    short = run.name if len(run.name) <= 26 else f"{run.name[:12]}…{run.name[-12:]}"
    return f"{run.key} {escape(short)}"


def _line(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "dash": DASHES[index % len(DASHES)], "width": 2}


def _second(step: ReportStep) -> str:
    return f"step {step.number} ({STAGES.get(step.stage, step.stage)}): {step.removal}"


def _tick(count: int) -> int:
    """Distance of ticks on an axis of whole numbers."""
    return next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6)
        if count <= 12 * step or step == 10**6
    )
