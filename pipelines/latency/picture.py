"""A picture of a table of latencies: milliseconds over size, and where the steps are."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pruning.costs.latency import PHASES, LatencyTable, Phase
from pruning.shape import Unit

_PANELS: tuple[tuple[Unit, str], ...] = (
    ("mlp_channels", "channels of one MLP"),
    ("kv_heads", "KV heads of one attention"),
)
# Okabe and Ito's palette, which the colour-blind can tell apart; markers differ as well.
_COLOR, _SLOW = "#0072B2", "#D55E00"


def latency_figure(table: LatencyTable) -> Figure:
    """Milliseconds of one block over its size, one panel for each kind of block and each phase;
    bars from the lowest to the highest round.
    """
    figure = Figure(figsize=(9, 6.4), dpi=150, layout="constrained")
    panels = figure.subplots(len(_PANELS), len(PHASES), squeeze=False)
    for row, (unit, label) in zip(panels, _PANELS, strict=True):
        for axes, phase in zip(row, PHASES, strict=True):
            _plot(axes, table, unit, phase)
            axes.set(xlabel=label, ylabel=f"{phase} (ms)")
    figure.suptitle(table.title, fontsize=10)
    return figure


def _plot(axes: Axes, table: LatencyTable, unit: Unit, phase: Phase) -> None:
    spreads = {size: getattr(times, phase) for size, times in sorted(table.times.of(unit).items())}
    medians = {size: 1e3 * spread.median for size, spread in spreads.items()}
    below = [1e3 * (spread.median - spread.lowest) for spread in spreads.values()]
    above = [1e3 * (spread.highest - spread.median) for spread in spreads.values()]
    axes.errorbar(
        list(medians),
        list(medians.values()),
        yerr=[below, above],
        color=_COLOR,
        marker="o",
        markersize=4,
        linewidth=1,
        capsize=2,
    )
    slow = sorted(table.costs_speed(unit, phase))
    if slow:
        axes.scatter(
            slow,
            [medians[size] for size in slow],
            color=_SLOW,
            marker="X",
            s=50,
            zorder=3,
            label="not faster than the next larger size",
        )
        axes.legend(fontsize=7)
    axes.set_ylim(bottom=min(0, *medians.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
