"""Charts of searches: their paths, their margins, and the blocks that they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipelines.report.analysis import STAGES, BlockVotes, Overlap
from pipelines.report.chart_style import (
    legend_label,
    line,
    log_if_wide,
    marker,
    new_figure,
    styled,
    tick,
)
from pipelines.report.data import ReportRun, ReportStep
from pipelines.runs.near_ties import NEAR_TIE_STDERRS

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
"""Share that remains: nothing is black, everything almost white."""


def trajectories(runs: Sequence[ReportRun], set_name: str) -> go.Figure:
    """Perplexity against ratio of the steps that were scored on one calibration set; the dense
    model at 0 where its perplexity there is known.
    """
    figure = new_figure("parameters removed (%)", "calibration perplexity")
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
        symbols, sizes = [marker(index)] * len(steps), [7] * len(steps)
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
            name=legend_label(run),
            mode="lines+markers",
            line=line(index),
            marker={"symbol": symbols, "size": sizes},
            hovertemplate="%{customdata}<br>%{x:.2f} % removed, perplexity %{y:.3f}",
        )
    return log_if_wide(figure, drawn)


def remaining_structure(run: ReportRun) -> go.Figure:
    """Layers against steps: the share that remains of each attention block and each MLP after each
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
            hovertemplate="%{customdata}<br>layer %{y}: %{z:.0f} % remaining<extra></extra>",
        )
    for before, after in zip(run.steps, run.steps[1:], strict=False):
        if before.stage != after.stage and run.allocation is None:
            figure.add_vline(
                x=before.number + 0.5, line={"color": _TIE, "width": 1.5, "dash": "dot"}
            )
    bar = {
        "title": {"text": "remaining (%)"},
        "tickvals": [0, 25, 50, 75, 100],
        "thickness": 12,
        "outlinewidth": 0,
    }
    styled(
        figure,
        coloraxis={
            "colorscale": [list(stop) for stop in _LEFT],
            "cmin": 0,
            "cmax": 100,
            "colorbar": bar,
        },
    )
    figure.update_yaxes(title_text="layer", showgrid=False)
    figure.update_xaxes(showgrid=False, dtick=tick(len(shapes)))
    figure.update_xaxes(title_text="step", row=2, col=1)
    figure.update_annotations(font={"size": 12})
    figure.update_layout(margin={"t": 26})
    return figure


def margins(run: ReportRun) -> go.Figure:
    """By how much the second best candidate lost at each step, with two standard errors."""
    figure = new_figure("step", "margin (NLL, nats per token)")
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
    figure.update_xaxes(dtick=tick(len(run.steps)), range=[0.3, len(run.steps) + 0.7])
    return figure.update_layout(showlegend=True)


def fragility(runs: Sequence[ReportRun]) -> go.Figure:
    """How close the closest candidate of each step came, in standard errors; what lies below the
    line is a near-tie.
    """
    figure = new_figure("step", "closest candidate (standard errors)")
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
                name=legend_label(run),
                mode="lines+markers",
                line=line(index) | {"width": 1},
                marker={"symbol": marker(index), "size": 8},
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
    figure.update_xaxes(dtick=tick(last))
    return figure


def votes(found: Sequence[BlockVotes], num_layers: int, num_runs: int) -> go.Figure:
    """How many runs removed each block."""
    figure = new_figure("layer", "runs that removed it")
    count: dict[tuple[str, int], int] = {vote.block: len(vote.steps) for vote in found}
    for kind, name, shade, pattern in (
        ("attention", "attention block", "#0072B2", ""),
        ("mlp", "MLP block", "#E69F00", "/"),
    ):
        counts = [count.get((kind, layer), 0) for layer in range(num_layers)]
        look = {
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
            marker=look,
            hovertemplate=f"{name} of layer %{{x}}: %{{y}} of {num_runs} runs",
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(range=[0, num_runs * 1.04], dtick=tick(num_runs))
    figure.update_xaxes(dtick=tick(num_layers))
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
    figure = new_figure("run", "run")
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


def _second(step: ReportStep) -> str:
    return f"step {step.number} ({STAGES.get(step.stage, step.stage)}): {step.removal}"
