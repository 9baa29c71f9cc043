"""The tables of latencies that targets in time were by: milliseconds of a block over its size."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipelines.report.cells import Runs, number, plain
from pipelines.report.chart_style import DASHES, MARKERS, color_of, styled
from pipelines.report.page import Chart, Folded, Heading, Part, Section, Table, Text
from pruning.costs.latency import PHASES, LatencyTable
from pruning.shape import Unit

_PANELS: tuple[tuple[Unit, str], ...] = (
    ("mlp_channels", "channels of one MLP"),
    ("kv_heads", "KV heads of one attention"),
)


def latencies(runs: Runs) -> Section | None:
    """One part for each table, which several runs may have in common."""
    found: dict[str, tuple[LatencyTable, list[str]]] = {}
    for run in runs:
        if run.latency is not None:
            found.setdefault(run.identity.get("latency", run.key), (run.latency, []))[1].append(
                run.key
            )
    parts = [
        part
        for index, (table, keys) in enumerate(found.values(), start=1)
        for part in _parts(index, table, keys)
    ]
    return Section("latencies", "Latencies", tuple(parts)) if parts else None


def _parts(index: int, table: LatencyTable, keys: list[str]) -> list[Part]:
    slow = [
        f"{phase}: {', '.join(map(str, sorted(sizes)))} {what.partition(' of ')[0]}"
        for unit, what in _PANELS
        for phase in PHASES
        if (sizes := table.costs_speed(unit, phase))
    ]
    said = f"{table.title}; bars from the lowest to the highest round."
    if slow:
        said += f" Not faster than the next larger size: {'; '.join(slow)}."
    text = "Milliseconds of one block over its size, in the prefill and in the decoding of a batch."
    return [
        Heading(f"by which {', '.join(keys)} had a target"),
        Text(said),
        Chart(f"latencies-{index}", "Milliseconds over size", text, plain(curves(table)), 380),
        Folded("The numbers", (_numbers(table),)),
    ]


def _numbers(table: LatencyTable) -> Table:
    rows = [
        (
            title,
            f"{size:,}",
            *(number(1e3 * getattr(times, phase).median, 3) for phase in PHASES),
        )
        for unit, title in _PANELS
        for size, times in sorted(table.times.of(unit).items())
    ]
    columns = ("size of", "", *(f"{phase} (ms)" for phase in PHASES))
    return Table(columns, "lrrr", tuple(rows))


def curves(table: LatencyTable) -> go.Figure:
    """One panel for each kind of block, one curve for each phase."""
    figure = make_subplots(rows=1, cols=len(_PANELS), horizontal_spacing=0.12)
    for column, (unit, title) in enumerate(_PANELS, start=1):
        for index, phase in enumerate(PHASES):
            times = {
                size: getattr(each, phase) for size, each in sorted(table.times.of(unit).items())
            }
            figure.add_scatter(
                x=list(times),
                y=[1e3 * each.median for each in times.values()],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [1e3 * (each.highest - each.median) for each in times.values()],
                    "arrayminus": [1e3 * (each.median - each.lowest) for each in times.values()],
                },
                mode="lines+markers",
                name=phase,
                legendgroup=phase,
                showlegend=column == 1,
                line={"color": color_of(index), "dash": DASHES[index], "width": 2},
                marker={"symbol": MARKERS[index], "size": 7},
                hovertemplate="%{x}: %{y:.3f} ms<extra></extra>",
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=title, row=1, col=column)
    styled(figure)
    figure.update_yaxes(title_text="ms", row=1, col=1)
    return figure
