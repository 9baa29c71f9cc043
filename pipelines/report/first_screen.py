"""What a report says first: one front with the best run marked and why, and the numbers of every
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pipelines.report.best import Best, best_of
from pipelines.report.cells import NONE, Runs, label, number, plain, relative
from pipelines.report.data import ReportRun
from pipelines.report.fronts import ACCURACY, HELDOUT, ParetoGroup, first_group, pareto_groups
from pipelines.report.page import Cell, Chart, Part, Section, Table, Text, Verdict
from pipelines.report.result_charts import pareto
from pipelines.runs.near_ties import NEAR_TIE_STDERRS

Role = Literal["dense", "pruned"]

_MILLISECONDS = "ms"
_DIFFERENCES = "model, text, documents or type"


def first_screen(runs: Runs) -> Section:
    """Without a chart where nothing was measured yet."""
    groups = pareto_groups(runs)
    group = first_group(groups)
    best = None if group is None else best_of(group)
    parts: list[Part] = []
    if group is not None and best is not None:
        figure, title = plain(pareto(group, runs, best)), front_title(group)
        parts += [Verdict(best.why), Chart("front", title, _legend(group), figure, 330)]
    parts += [*_apart(runs, groups), _numbers(runs, group, best), *_sources(runs)]
    stopped = [run.key for run in runs if not run.ended]
    if stopped:
        parts.append(
            Text(
                f"{', '.join(stopped)} {'has' if len(stopped) == 1 else 'have'} not ended: shown "
                "as far as it came. What is measured at the end is missing."
            )
        )
    return Section("result", "Result", tuple(parts))


def _apart(runs: Runs, groups: Sequence[ParetoGroup]) -> list[Part]:
    """Which numbers of one column do not compare."""
    within: dict[str, list[str]] = {}
    for group in groups:
        keys = ", ".join(point.run.key for point in group.runs if point.run is not None)
        within.setdefault(group.metric, []).append(keys)
    times: dict[str, list[str]] = {}
    for run in runs:
        if run.milliseconds is not None:
            times.setdefault(run.milliseconds[0], []).append(run.key)
    within[_MILLISECONDS] = [", ".join(keys) for keys in times.values()]
    return [
        Text(
            f"{_capital(name)}: compare only within {' and within '.join(keys)}, which differ in "
            f"{'what was timed, or by which table' if name == _MILLISECONDS else _DIFFERENCES}."
        )
        for name, keys in within.items()
        if len(keys) > 1
    ]


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]


def front_title(group: ParetoGroup) -> str:
    """What is over what."""
    return f"{_capital(group.metric)} against {'time' if group.time else 'ratio'}"


def _legend(group: ParetoGroup) -> str:
    side = "left" if group.time else "right"
    said = [
        f"{'Lower' if group.lower_is_better else 'Higher'} and further {side} is better; the line "
        "joins what no other beats."
    ]
    if any(point.run is not None and point.run.is_control for point in group.runs):
        said.append("Open: controls, which look at no score.")
    if any(point.stderr is not None for point in group.points):
        of = " of the difference from dense, paired over the sequences" * group.lower_is_better
        said.append(f"Bars: one standard error{of}.")
    return " ".join(said)


def _numbers(runs: Runs, group: ParetoGroup | None, best: Best | None) -> Table:
    """One row a run, and one of the dense model where all have the same; what the front shows
    comes first, and what nobody measured is left out.
    """
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    texts = dict.fromkeys(text for evaluation in evaluations for text in evaluation.texts)
    columns: dict[str, Callable[[ReportRun, Role], str]] = {
        "removed": lambda run, role: "0.00%" if role == "dense" else f"{run.ratio:.2%}",
        HELDOUT: _heldout,
        "change": lambda run, role: NONE if role == "dense" else relative(run.heldout),
        _MILLISECONDS: _milliseconds,
        **{f"perplexity on {text}": partial(_text, text) for text in texts},
        ACCURACY: _accuracy,
    }
    cells = {
        name: [[cell(run, role) for run in runs] for role in ("dense", "pruned")]
        for name, cell in columns.items()
    }
    first = [] if group is None else [_MILLISECONDS if group.time else "removed", group.metric]
    measured = [name for name, (_, pruned) in cells.items() if set(pruned) != {NONE}]
    shown = sorted(measured, key=lambda name: first.index(name) if name in first else len(first))
    rows: list[tuple[Cell, ...]] = []
    if len({run.fingerprint for run in runs}) == 1:
        known = (set(cells[name][0]) - {NONE} for name in shown)
        dense = (found.pop() if len(found) == 1 else NONE for found in known)
        rows.append(("dense model", *dense, "", ""))
    for index, run in enumerate(runs):
        values = (cells[name][1][index] for name in shown)
        method = run.method.replace("_", " ") + ", a control" * run.is_control
        rows.append((label(run, runs, name=True), *values, method, _verdict(run, best)))
    return Table(("run", *shown, "method", ""), f"l{'r' * len(shown)}ll", tuple(rows), True)


def _heldout(run: ReportRun, role: Role) -> str:
    """With the standard error of its difference from dense, paired over the sequences."""
    value, nll = getattr(run.heldout, role), run.heldout_nll.get(run.heldout_text)
    stderr = nll[1].stderr_of_difference(nll[0]) if nll and role == "pruned" else None
    known = value is not None and stderr is not None
    return number(value) + (f" ± {number(value * stderr)}" if known else "")


def _milliseconds(run: ReportRun, role: Role) -> str:
    return NONE if run.milliseconds is None else f"{getattr(run.milliseconds[1], role):.4g}"


def _text(name: str, run: ReportRun, role: Role) -> str:
    found = run.evaluation.texts.get(name) if run.evaluation else None
    return NONE if found is None else number(getattr(found[0], role))


def _accuracy(run: ReportRun, role: Role) -> str:
    if run.evaluation is None or getattr(run.evaluation.average, role) is None:
        return NONE
    stderr = getattr(run.evaluation.average_stderr, role)
    bar = "" if stderr is None else f" ± {100 * stderr:.2f}"
    return f"{100 * getattr(run.evaluation.average, role):.2f}{bar} %"


def _verdict(run: ReportRun, best: Best | None) -> str:
    if not run.ended:
        return "not ended"
    if best is None or best.point is None:
        return ""
    if run is best.point.run:
        return "leads" if best.near else "best"
    if any(point.run is run for point in best.near):
        return f"within {NEAR_TIE_STDERRS:g} standard errors"
    return ""


def _sources(runs: Runs) -> list[Part]:
    """Of mixtures, each source apart."""
    rows = [
        (label(run, runs), source, number(pair.dense), number(pair.pruned), relative(pair))
        for run in runs
        for source, (pair, _) in run.heldout_sources.items()
    ]
    if not rows:
        return []
    said = (
        "Held-out perplexity of each text of a mixture: what is better on one and worse on another "
        "is not better."
    )
    columns = ("run", "held-out text", "dense", "pruned", "change")
    return [Text(said), Table(columns, "llrrr", tuple(rows))]
