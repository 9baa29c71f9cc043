"""How all charts of a report look: each run has a colour, a marker and a dash of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from pipelines.report.data import ReportRun

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, which is lost
on white.
"""
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# 7 colours, 8 markers, 6 dashes: the first 168 runs each have their own three.

_LOG_FROM = 10.0
"""Where the highest value is this many times the lowest, the axis is logarithmic."""


def marker(index: int) -> str:
    """Of the run with this index."""
    return MARKERS[index % len(MARKERS)]


def color_of(index: int) -> str:
    """Of the run with this index."""
    return COLORS[index % len(COLORS)]


def color(run: ReportRun, runs: Sequence[ReportRun]) -> str:
    """The colour of a run on the whole page."""
    return color_of(runs.index(run))


def new_figure(x_title: str, y_title: str) -> go.Figure:
    """An empty chart."""
    figure = styled(go.Figure())
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """The figure in the style of all, and with more of Plotly's layout."""
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


def log_if_wide(figure: go.Figure, values: Sequence[float]) -> go.Figure:
    """With a logarithmic axis where the values call for one."""
    if values and max(values) > _LOG_FROM * min(values) > 0:
        figure.update_yaxes(type="log", dtick="D2")
    return figure


def legend_label(run: ReportRun) -> str:
    """For legends. Plotly reads tags in its texts, so a name that looks like one is escaped."""
    return f"{run.key} {escape(run.short_name)}"


def line(index: int) -> dict[str, Any]:
    """Of the run with this index."""
    return {"color": color_of(index), "dash": DASHES[index % len(DASHES)], "width": 2}


def tick(count: int) -> int:
    """Distance of ticks on an axis of whole numbers."""
    return next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6)
        if count <= 12 * step or step == 10**6
    )
