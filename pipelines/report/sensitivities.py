"""What an allocation was chosen from: the sensitivity of every block at every size, what the solver
took, how well its sum foretold the measurement, and where one percent more would cost least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipelines.report.cells import NONE, Runs, label, plain
from pipelines.report.chart_style import styled, tick
from pipelines.report.data import ReportRun
from pipelines.report.page import Chart, Heading, Part, Section, Table, Text
from pruning.search.allocation_result import Allocation
from pruning.shape import UNITS, ModelShape, Unit

_TITLES: Mapping[Unit, str] = {
    "kv_heads": "attention: KV heads more or fewer",
    "mlp_channels": "MLP: channels more or fewer",
}
_SCALE = "RdBu_r"
"""Diverging around 0: red costs, blue gains."""
_NUM_CHEAPEST = 6

Changes = Mapping[tuple[Unit, int, int], float | None]
"""KL of a block (unit, layer) at a difference of size from the base, less that of the base."""


def sensitivities(runs: Runs) -> Section | None:
    """One part for each run that allocated sizes."""
    parts = [part for run in runs if run.allocation for part in _parts(run, run.allocation, runs)]
    return Section("sensitivities", "Sensitivities", tuple(parts)) if parts else None


def _parts(run: ReportRun, allocation: Allocation, runs: Runs) -> list[Part]:
    last = allocation.rounds[-1]
    base, changes = ModelShape.parse(last["base"]), changes_of(last)
    said = (
        f"KL from the dense model: {allocation.start_score:.4f} nats per token at the uniform "
        f"shape, {allocation.score:.4f} at the allocation, after {len(allocation.rounds)} "
        f"round{'s' if len(allocation.rounds) > 1 else ''} and {allocation.num_shapes} shapes."
    )
    text = (
        "The last round: how much KL changes when one block alone has another size, in thousandths "
        "of a nat per token. Red costs, blue gains; a cross is the size that was taken."
    )
    figure = heatmap(base, ModelShape.parse(last["shape"]), changes)
    height = min(900, 150 + 16 * len(base.layers))
    return [
        Heading(run.name, label(run, runs)),
        Text(said),
        Chart(f"sensitivities-{run.key}", "Sensitivity of each block", text, plain(figure), height),
        Text(
            "How well the sum of the sensitivities foretold what was measured, both less than the "
            "KL that the round began with:"
        ),
        _foretold(allocation),
        Text(
            "Where one percent of the model's parameters more would cost least, by the last "
            "round's smallest step down of each block:"
        ),
        _cheapest(run, base, changes),
    ]


def changes_of(each: Mapping[str, Any]) -> Changes:
    """The table of one round of `allocation.json`."""
    base = ModelShape.parse(each["base"])
    return {
        (
            change["unit"],
            change["layer"],
            change["size"] - getattr(base.layers[change["layer"]], change["unit"]),
        ): change["kl"]
        for change in each["changes"]
    }


def heatmap(base: ModelShape, taken: ModelShape, changes: Changes) -> go.Figure:
    """Layers down, differences of size across; one panel for each unit that may change."""
    units = [unit for unit in UNITS if any(key[0] == unit for key in changes)]
    layers = list(range(len(base.layers)))
    figure = make_subplots(
        rows=1,
        cols=len(units),
        shared_yaxes=True,
        horizontal_spacing=0.08,
        column_widths=[1.0 if unit == "mlp_channels" else 0.6 for unit in units],
        subplot_titles=[_TITLES[unit] for unit in units],
    )
    largest = 0.0
    for column, unit in enumerate(units, start=1):
        steps = sorted({step for each, _, step in changes if each == unit})
        cells = [
            [_thousandths(changes.get((unit, layer, step))) for step in steps] for layer in layers
        ]
        largest = max([largest, *(abs(cell) for row in cells for cell in row if cell is not None)])
        names = [f"{step:+d}" if step else "0" for step in steps]
        figure.add_heatmap(
            x=names, y=layers, z=cells, coloraxis="coloraxis", xgap=1, ygap=1, row=1, col=column,
            hovertemplate="layer %{y}, %{x}: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        moves = {
            layer: getattr(taken.layers[layer], unit) - getattr(base.layers[layer], unit)
            for layer in layers
        }
        chosen = [(layer, moves[layer]) for layer in layers if moves[layer] in steps]
        figure.add_scatter(
            x=[f"{move:+d}" if move else "0" for _, move in chosen],
            y=[layer for layer, _ in chosen],
            mode="markers", marker={"symbol": "x", "size": 7, "color": "#111827"},
            showlegend=False, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(
            title_text="size less that of the base", type="category",
            categoryorder="array", categoryarray=names, row=1, col=column,
        )  # fmt: skip
    bar = {"title": {"text": "KL (10⁻³)"}, "thickness": 12, "outlinewidth": 0}
    axis = {"colorscale": _SCALE, "cmin": -largest, "cmax": largest, "colorbar": bar}
    styled(figure, coloraxis=axis)
    figure.update_yaxes(showgrid=False, dtick=tick(len(layers)))
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_xaxes(showgrid=False)
    figure.update_annotations(font={"size": 12})
    return figure.update_layout(margin={"t": 30})


def _foretold(allocation: Allocation) -> Table:
    """Every solution of every round, predicted and measured."""
    rows = []
    for number, each in enumerate(allocation.rounds, start=1):
        base = ModelShape.parse(each["base"])
        for solution in each["solutions"]:
            shape = ModelShape.parse(solution["shape"])
            rows.append(
                (
                    str(number),
                    str(_num_changed(base, shape)),
                    _signed(solution["predicted_kl"]),
                    _signed(solution["kl"]),
                    "taken" if solution["shape"] == each["shape"] else "",
                )
            )
    columns = ("round", "blocks changed", "predicted (10⁻³)", "measured (10⁻³)", "")
    return Table(columns, "rrrrl", tuple(rows))


def _cheapest(run: ReportRun, base: ModelShape, changes: Changes) -> Table:
    """Blocks by what one percent of all parameters costs in them, the cheapest first."""
    percent = percent_of_one(run)
    found = []
    for unit in UNITS:
        for layer in range(len(base.layers)):
            down = [
                step for each, index, step in changes if (each, index) == (unit, layer) and step < 0
            ]
            cost = changes[unit, layer, max(down)] if down else None
            if cost is not None and unit in percent:
                found.append((cost / (-max(down) * percent[unit]), unit, layer))
    rows = [
        (f"{'attention' if unit == 'kv_heads' else 'MLP'} {layer}", _signed(cost))
        for cost, unit, layer in sorted(found)
    ]
    if len(rows) > 2 * _NUM_CHEAPEST:
        rows = [*rows[:_NUM_CHEAPEST], ("...", ""), *rows[-_NUM_CHEAPEST:]]
    return Table(("block", "KL for 1 % of the parameters (10⁻³)"), "lr", tuple(rows))


def percent_of_one(run: ReportRun) -> Mapping[Unit, float]:
    """Percent of all parameters that one KV head or MLP channel is, from the path's own steps."""
    found: dict[Unit, float] = {}
    before_ratio, before = 0.0, run.dense_shape
    for step in run.steps:
        unit = step.removal.unit
        count = getattr(before.layers[step.removal.layer], unit) - step.removal.remaining
        if count > 0:
            found.setdefault(unit, 100 * (step.ratio - before_ratio) / count)
        before_ratio, before = step.ratio, step.shape
    return found


def _num_changed(before: ModelShape, after: ModelShape) -> int:
    return sum(
        getattr(first, unit) != getattr(second, unit)
        for first, second in zip(before.layers, after.layers, strict=True)
        for unit in UNITS
    )


def _thousandths(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else 1000 * value


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{1000 * value:+.2f}"
