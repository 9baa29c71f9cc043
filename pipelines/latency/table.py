"""A table of latencies as a person reads it."""

from __future__ import annotations

from rich.table import Table

from pruning.costs.latency import PHASES, LatencyTable, PhaseTimes
from pruning.costs.speed import Spread
from pruning.shape import ModelShape, Unit

_ROWS: tuple[tuple[Unit, str], ...] = (
    ("mlp_channels", "MLP, channels"),
    ("kv_heads", "attention, KV heads"),
)


def as_table(table: LatencyTable, dense: ModelShape) -> Table:
    """Milliseconds of each block at each size, and what part of the dense model's that is."""
    shown = Table(title=f"milliseconds of {table.title}", title_justify="left")
    shown.add_column("one block")
    for name in ("size", "prefill", "decode", "of the dense model", "costs speed"):
        shown.add_column(name, justify="right")
    whole = table.nanoseconds(dense)
    for unit, title in _ROWS:
        shown.add_section()
        marks = {phase: table.costs_speed(unit, phase) for phase in PHASES}
        for number, (size, times) in enumerate(sorted(table.times.of(unit).items())):
            shown.add_row(
                "" if number else title,
                f"{size:,}",
                *_milliseconds(times),
                _share(times, whole),
                ", ".join(phase for phase in PHASES if size in marks[phase]),
            )
    shown.add_section()
    shown.add_row(
        "embedding, head", "", *_milliseconds(table.times.rest), _share(table.times.rest, whole)
    )
    shown.add_row(
        "dense model", "", *(f"{1e3 * table.seconds(dense, phase):.3g}" for phase in PHASES), "1"
    )
    for text in table.whole_models:
        _add_whole(shown, table, ModelShape.parse(text), dense)
    shown.caption = (
        "median (lowest to highest round); costs speed: not faster than the next larger size"
        + ("; error: predicted / measured - 1" if table.whole_models else "")
    )
    shown.caption_justify = "left"
    return shown


def _add_whole(shown: Table, table: LatencyTable, shape: ModelShape, dense: ModelShape) -> None:
    """What a whole model took in the same rounds, and how far the table is from that."""
    measured, is_dense = table.whole_models[shape.text], shape == dense
    shown.add_section()
    if not is_dense:
        seconds = [table.seconds(shape, phase) for phase in PHASES]
        share = f"{sum(seconds) / table.seconds(dense):.4f}"
        shown.add_row("pruned model", "", *(f"{1e3 * each:.3g}" for each in seconds), share)
    shown.add_row("  measured", "", *_milliseconds(measured))
    shown.add_row("  error", "", *(f"{table.error(shape, phase):+.1%}" for phase in PHASES))


def _milliseconds(times: PhaseTimes) -> list[str]:
    return [_words(getattr(times, phase)) for phase in PHASES]


def _words(spread: Spread) -> str:
    median, lowest, highest = (
        f"{1e3 * each:.3g}" for each in (spread.median, spread.lowest, spread.highest)
    )
    return f"{median} ({lowest} to {highest})"


def _share(times: PhaseTimes, whole: int) -> str:
    return f"{1e9 * (times.prefill.median + times.decode.median) / whole:.4f}"
