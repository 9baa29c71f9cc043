"""Pictures of one run: perplexity against ratio, and what remains of every block.

Figures are made without pyplot, whose backend and open figures are the program's that called.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from pipelines.runs.journal import set_of
from pruning.models.geometry import Geometry
from pruning.search.allocation import Block
from pruning.shape import ModelShape

# Okabe and Ito's palette, which the colour-blind can tell apart; markers differ as well.
STAGES = {
    "block": ("residual blocks", "#0072B2", "o"),
    "mlp_channels": ("MLP channels", "#E69F00", "s"),
    "attention_heads": ("attention heads", "#009E73", "^"),
}


def is_target(option: str) -> bool:
    """Whether an option says how much is to go."""
    return option == "search.target_ratio" or option.startswith("search.target.")


SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def trajectory_figure(
    lines: Sequence[Mapping[str, Any]],
    dense: Mapping[str, float | None],
    title: str,
    prices: Mapping[Block, float] | None = None,
) -> Figure:
    """Calibration perplexity against ratio, one point a step, coloured by stage.

    Blocks and widths are scored on different texts, so they are two curves, each starting at the
    dense model's perplexity on its own text (`dense`: by set, `block` and `width`).

    Args:
        prices: of an allocation (`Allocation.prices`): below, what each block would have cost.
    """
    figure = Figure(figsize=(8, 7.2 if prices else 4.5), dpi=150, layout="constrained")
    panels = figure.subplots(
        2 if prices else 1, squeeze=False, height_ratios=[1.5, 1] if prices else None
    )
    _plot_steps(panels[0, 0], lines, dense)
    panels[0, 0].set_title(title)
    if prices:
        _plot_prices(panels[1, 0], prices, lines)
    return figure


def _plot_steps(
    axes: Axes, lines: Sequence[Mapping[str, Any]], dense: Mapping[str, float | None]
) -> None:
    """A curve for each text that steps were scored on, and its steps by their stage."""
    drawn: list[float] = []
    for set_name, style, marker in (("block", "-", "D"), ("width", "--", "d")):
        steps = [
            (100 * line["ratio"], line["perplexity"]) for line in lines if set_of(line) == set_name
        ]
        start = dense[set_name]
        if not steps or start is None:
            continue
        curve = [(0.0, start), *(point for point in steps if point[1] is not None)]
        axes.plot(
            [across for across, _ in curve],
            [up for _, up in curve],
            color="0.7",
            linestyle=style,
            linewidth=1,
            zorder=1,
        )
        axes.scatter(
            [0.0],
            [start],
            color="black",
            marker=marker,
            s=30,
            label=f"dense, on the {set_name} text",
            zorder=2,
        )
        drawn += [up for _, up in curve]
    for stage, (label, color, marker) in STAGES.items():
        points = [
            (100 * line["ratio"], line["perplexity"])
            for line in lines
            if line["stage"] == stage and line["perplexity"] is not None
        ]
        if points:
            across, up = zip(*points, strict=True)
            count = f"{len(points)} step{'s' if len(points) > 1 else ''}"
            axes.scatter(
                across, up, color=color, marker=marker, s=30, label=f"{label}, {count}", zorder=3
            )
    if drawn and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
    axes.set(xlabel="parameters removed (%)", ylabel="calibration perplexity")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()


def _plot_prices(
    axes: Axes, prices: Mapping[Block, float], lines: Sequence[Mapping[str, Any]]
) -> None:
    """What one percent of the parameters costs in each block; filled where the path took some."""
    cut = {
        (line["removed"]["layer"], unit)
        for line in lines
        for unit in ("kv_heads", "mlp_channels")
        if unit in line["removed"]
    }
    for unit, stage in (("mlp_channels", "mlp_channels"), ("kv_heads", "attention_heads")):
        label, color, marker = STAGES[stage]
        for taken, said in ((True, "narrowed"), (False, "left whole")):
            points = [
                (layer, 1000 * price)
                for (layer, kind), price in sorted(prices.items())
                if kind == unit and ((layer, kind) in cut) is taken
            ]
            if points:
                across, up = zip(*points, strict=True)
                axes.scatter(
                    across,
                    up,
                    edgecolors=color,
                    facecolors=color if taken else "white",
                    marker=marker,
                    s=30,
                    label=f"{label}, {said}",
                    zorder=3,
                )
    if min(prices.values()) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:  # near 0 noise decides the sign
        axes.axhline(0, color="0.7", linewidth=1)
        axes.set_yscale("symlog", linthresh=10)
    axes.margins(y=0.2)
    axes.set(xlabel="layer", ylabel="KL of 1 % of the\nparameters (10⁻³ nats)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)


def shape_figure(
    shape: ModelShape,
    geometry: Geometry,
    lines: Sequence[Mapping[str, Any]],
    title: str,
) -> Figure:
    """Layers across; for attention and MLP what remains of each block, and in it the step at which
    it was last cut.
    """
    num_layers = len(shape.layers)
    left = np.array([
        [layer.kv_heads / geometry.kv_heads for layer in shape.layers],
        [layer.mlp_channels / geometry.mlp_channels for layer in shape.layers],
    ])  # fmt: skip
    figure = Figure(figsize=(max(6.0, 0.36 * num_layers + 2.2), 2.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    shades = ListedColormap(colormaps["cividis"](np.linspace(0.15, 1, 256))).with_extremes(
        under="white"
    )
    image = axes.imshow(left, cmap=shades, vmin=1e-6, vmax=1, aspect="auto")
    _mark_cuts(axes, left, lines)
    axes.set_xticks(range(0, num_layers, 1 if num_layers <= 40 else 5))
    axes.tick_params(axis="x", labelsize=7)
    axes.set_yticks([0, 1], ["attention", "MLP"])
    axes.set_xticks(np.arange(-0.5, num_layers), minor=True)
    axes.set_yticks([0.5], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="layer (number: step of its last cut; hatched: removed)", title=title)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("remaining")
    bar.set_ticks([0.25, 0.5, 0.75, 1], labels=["25 %", "50 %", "75 %", "100 %"])
    return figure


def _mark_cuts(
    axes: Axes, left: npt.NDArray[np.float64], lines: Sequence[Mapping[str, Any]]
) -> None:
    """Hatches the blocks that are gone, and writes the step of the last cut into each.

    Args:
        left: [attention and MLP, layers], 0..1.
    """
    last_step = {
        (0 if "kv_heads" in line["removed"] else 1, line["removed"]["layer"]): line["step"]
        for line in lines
    }
    for row, layer in np.ndindex(left.shape):
        if left[row, layer] == 0:
            axes.add_patch(
                Rectangle(
                    (layer - 0.5, row - 0.5),
                    1,
                    1,
                    fill=False,
                    hatch="////",
                    edgecolor="0.6",
                    linewidth=0,
                )
            )
        if (row, layer) in last_step:
            axes.text(
                layer,
                row,
                str(last_step[row, layer]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if 0 < left[row, layer] < 0.6 else "black",
                bbox=_box(left[row, layer] == 0),
            )


def sweep_figure(report: Mapping[str, Any]) -> Figure:
    """The points of `sweep.json`: each number against ratio, one line for what differs in more than
    the target; rings mark the Pareto front.
    """
    rows = [row for row in report["points"] if row["ratio"] is not None]
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row["values"])
        if name not in ("block_perplexity", "width_perplexity")
    ]
    figure = Figure(figsize=(5.2 * max(1, len(names)), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, max(1, len(names)), squeeze=False)
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        series.setdefault(_series_of(row), []).append(row)
    for axes, name in zip(panels[0], names, strict=False):
        for (label, points), color, marker in zip(
            series.items(), itertools.cycle(SERIES), itertools.cycle("os^Dv*")
        ):
            _plot_series(axes, name, points, label=label, color=color, marker=marker)
        dense = next((row["dense"][name] for row in rows if name in row["dense"]), None)
        if dense is not None:
            axes.axhline(dense, color="0.5", linestyle=":", linewidth=1, label="dense")
        values = [row["values"][name] for row in rows if name in row["values"]]
        if values and max(values) > 5 * min(values):
            axes.set_yscale("log")
        axes.set(xlabel="parameters removed (%)", ylabel=name.replace("_", " "))
        axes.grid(alpha=0.3)
    if names and len(series) > 1:
        panels[0][0].legend(fontsize=8)
    return figure


def _series_of(row: Mapping[str, Any]) -> str:
    """What a point differs in besides the target."""
    settings = row["settings"].items()
    return ", ".join(str(value) for name, value in settings if not is_target(name)) or "points"


def _plot_series(
    axes: Axes,
    name: str,
    points: Sequence[Mapping[str, Any]],
    *,
    label: str,
    color: str,
    marker: str,
) -> None:
    """One number of points that differ in their target alone."""
    drawn = sorted((row for row in points if name in row["values"]), key=lambda row: row["ratio"])
    across = [100 * row["ratio"] for row in drawn]
    up = [row["values"][name] for row in drawn]
    errors = [row["stderrs"].get(name, 0.0) for row in drawn]
    axes.errorbar(
        across,
        up,
        yerr=errors if any(errors) else None,
        label=label,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1,
        capsize=2,
    )
    front = [(x, y) for x, y, row in zip(across, up, drawn, strict=True) if name in row["pareto"]]
    axes.scatter(
        [x for x, _ in front],
        [y for _, y in front],
        s=90,
        facecolors="none",
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
    )


def _box(removed: bool) -> dict[str, Any] | None:
    return {"facecolor": "white", "edgecolor": "none", "pad": 1} if removed else None
