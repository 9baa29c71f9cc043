"""How a report writes runs, numbers, removals and verdicts, the same everywhere on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

import plotly.graph_objects as go

from pipelines.report.analysis import Block
from pipelines.report.chart_style import color
from pipelines.report.data import Pair, ReportRun
from pipelines.report.page import RunLabel
from pipelines.runs.near_ties import NEAR_TIE_STDERRS
from pruning.shape import Removal

Runs = Sequence[ReportRun]

NONE = "-"
"""Where there is no number."""


def label(run: ReportRun, runs: Runs, *, name: bool = False) -> RunLabel:
    """The key of a run on its colour, and its name if asked for."""
    return RunLabel(run.key, color(run, runs), run.name if name else "")


def outcome(run: ReportRun) -> str:
    """How it ended.

    A target that was not reached comes with advice for the next search, which is left out.
    """
    return re.sub(r"^(search\.target\S+ )+", "", run.outcome.partition(". ")[0])


def tie(stderrs: float | None) -> str:
    """What a difference of so many standard errors is called."""
    if stderrs is None:
        return ""
    return "tie" if stderrs == 0 else "near-tie" if stderrs < NEAR_TIE_STDERRS else "clear"


def removal(removed: Removal) -> str:
    """What one step took away."""
    block_name = "attention" if removed.unit == "kv_heads" else "MLP"
    if removed.kind in ("attention", "mlp"):
        return f"{block_name} block of layer {removed.layer}"
    return (
        f"{block_name} of layer {removed.layer} to {removed.remaining} "
        f"{'KV heads' if removed.unit == 'kv_heads' else 'channels'}"
    )


def block(removed: Block) -> str:
    """A block in two words."""
    return f"{'attention' if removed[0] == 'attention' else 'MLP'} {removed[1]}"


def number(value: float | None, digits: int = 2) -> str:
    """With so many digits after the point."""
    return NONE if value is None else f"{value:,.{digits}f}"


def relative(pair: Pair) -> str:
    """By how much the pruned model differs from the dense one."""
    return (
        f"{pair.pruned / pair.dense - 1:+.1%}" if pair.pruned is not None and pair.dense else NONE
    )


def near_ties(run: ReportRun) -> str:
    """How many of the choices were close, of those where that is known."""
    known = sum(step.near_tie is not None for step in run.steps)
    return f"{len(run.near_ties)} of {known}" if known else NONE


def plain(figure: go.Figure) -> dict[str, object]:
    """As JSON has it."""
    made: dict[str, object] = figure.to_plotly_json()
    return made
