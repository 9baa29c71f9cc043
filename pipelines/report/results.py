"""What a report says of the models that came out: other fronts, cost, benchmarks, what they write;
and which settings they came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli.console import duration
from pipelines.report.best import best_of, number_of
from pipelines.report.cells import NONE, Runs, label, number, plain, relative
from pipelines.report.data import SIZES, Evaluation, Pair, ReportRun, TaskScore
from pipelines.report.first_screen import front_title
from pipelines.report.fronts import ParetoGroup, first_group, pareto_groups
from pipelines.report.page import (
    Cell,
    Chart,
    Folded,
    Heading,
    Part,
    Section,
    SideBySide,
    Table,
    Text,
)
from pipelines.report.result_charts import accuracies, pareto
from pruning.costs.accounting import NOT_KNOWN


def fronts(runs: Runs) -> Section | None:
    """What else was measured, against ratio or time; the first screen has the first front."""
    groups = pareto_groups(runs)
    shown = [group for group in groups if group is not first_group(groups)]
    if not shown:
        return None
    said = (
        "Joined are the models that no other beats: none that is smaller is as good, and none as "
        "small is better. Only results in the same dtype on the same text, or on the same "
        "documents by the same harness, share a chart."
    )
    differing = _differing_conditions(runs)
    charts, tables = list[Part](), list[Part]()
    for index, group in enumerate(shown):
        chart, table = _front(index, group, runs, wide=len(shown) == 1)
        charts.append(chart)
        tables.append(table)
    intro = Text(f"{said} {differing}" if differing else said)
    return Section("fronts", "Other fronts", (intro, *charts, *tables))


def _front(index: int, group: ParetoGroup, runs: Runs, *, wide: bool) -> tuple[Chart, Table]:
    best = best_of(group)
    rows: list[tuple[Cell, ...]] = [
        (
            label(point.run, runs, name=True) if point.run else "dense model",
            group.metric,
            f"{point.size:.4g} ms" if group.time else f"{point.size:.2%}",
            number_of(group, point.value),
            "yes" if point.on_front else "no",
        )
        for point in sorted(group.points, key=lambda point: point.size)
    ]
    columns = ("model", "measured", "time" if group.time else "removed", "value", "not beaten")
    figure = plain(pareto(group, runs, best))
    return (
        Chart(f"front-{index}", front_title(group), best.why, figure, 330, wide=wide),
        Table(columns, "llrrl", tuple(rows)),
    )


def cost(runs: Runs) -> Section | None:
    """What the searches took, and what they saved."""
    ended = [run for run in runs if run.ended]
    if not ended:
        return None
    searches: list[tuple[Cell, ...]] = []
    for run in ended:
        costs = run.costs
        faults = ", ".join(f"{count} x {name}" for name, count in costs["faults"].items()) or "none"
        counts = [costs["candidates"], *(f"{costs[name]:,}" for name in ("scored", "reused"))]
        counts += [number(costs[name], 0) for name in ("halved", "other_arithmetic")]
        rest = (
            duration(costs["seconds"]),
            str(costs["num_evaluators"]),
            faults,
            str(costs["lost_evaluations"]),
        )
        searches.append((label(run, runs, name=True), *counts, *rest))
    models: list[tuple[Cell, ...]] = [
        (label(run, runs, name=True), what, *_saved(run.sizes.get(size)))
        for size, what in zip(SIZES, _SIZE_NAMES, strict=True)
        for run in ended
    ]
    return Section(
        "cost",
        "Cost",
        (
            Heading("The searches"),
            Text(
                "Evaluations are (candidate, batch) pairs, scored or found in the store. A search "
                "that was resumed counts its last "
                "process. The last digits may differ where a batch was run in halves, or by an "
                "evaluator with another device or version than the first; these are counted over "
                "the whole search."
            ),
            Table(
                (
                    "run",
                    "candidates",
                    "evaluations scored",
                    "reused",
                    "of halved batches",
                    "of other devices or versions",
                    "time",
                    "evaluators",
                    "faults",
                    "lost evaluations",
                ),
                "lrrrrrrrlr",
                tuple(searches),
            ),
            Heading("The models"),
            Table(("run", "what", "dense", "pruned", "change"), "llrrr", tuple(models)),
        ),
    )


_SIZE_NAMES = ("parameters", "FLOPs per token", "KV-cache bytes per token")


def _saved(pair: Pair | None) -> tuple[str, str, str]:
    if pair is None:
        return NONE, NONE, NONE
    if pair.dense is None or pair.pruned is None:
        return NOT_KNOWN, NOT_KNOWN, NONE
    return (
        f"{pair.dense:,.0f}",
        f"{pair.pruned:,.0f}",
        f"{pair.pruned / pair.dense - 1:+.1%}" if pair.dense else NONE,
    )


def benchmarks(runs: Runs) -> Section | None:
    """Zero-shot tasks and texts, where they were measured."""
    evaluated = {run.key: run.evaluation for run in runs if run.evaluation is not None}
    rows = [row for run in runs if run.evaluation for row in _scores(run, run.evaluation, runs)]
    if not rows:
        return None
    columns = (
        "run",
        "benchmark",
        "metric",
        "dense",
        "standard error",
        "pruned",
        "standard error",
        "change",
    )
    parts: list[Part] = [Table(columns, "lllrrrrr", tuple(rows))]
    chosen = _shown_metrics(list(evaluated.values()))
    if chosen:
        measured = [run for run in runs if run.evaluation is not None and run.evaluation.tasks]
        text = (
            "Open: dense. Filled: pruned. Bars: one standard error. acc_norm, or acc for "
            f"tasks without one. {_differing_conditions(measured)}"
        )
        figure = accuracies(runs, measured, chosen)
        parts.insert(0, Chart("accuracy", "Zero-shot accuracy", text.rstrip(), plain(figure)))
    elif _differing_conditions(runs):
        parts.append(Text(_differing_conditions(runs)))
    return Section("benchmarks", "Benchmarks", tuple(parts))


def _scores(run: ReportRun, evaluation: Evaluation, runs: Runs) -> list[tuple[Cell, ...]]:
    """One row for each text and each metric of a task, then their average."""
    badge = label(run, runs)
    rows: list[tuple[Cell, ...]] = [
        (
            badge,
            name,
            "token perplexity",
            number(pair.dense),
            NONE,
            number(pair.pruned),
            NONE,
            relative(pair),
        )
        for name, (pair, _) in evaluation.texts.items()
    ]
    average = TaskScore("average", "acc_norm, else acc", evaluation.average, Pair(None, None))
    shown = (*evaluation.tasks, *((average,) if average.score.pruned is not None else ()))
    rows += [
        (
            badge,
            each.task,
            each.metric,
            number(each.score.dense, 4),
            number(each.stderr.dense, 4),
            number(each.score.pruned, 4),
            number(each.stderr.pruned, 4),
            _difference(each.score),
        )
        for each in shown
    ]
    return rows


def _differing_conditions(runs: Runs) -> str:
    """Why scores of these runs do not compare; empty if they do."""
    evaluated = [(run, run.evaluation.conditions) for run in runs if run.evaluation is not None]
    names = dict.fromkeys(name for _, conditions in evaluated for name in conditions)
    parts = []
    for name in names:
        keys: dict[str, list[str]] = {}
        for run, conditions in evaluated:
            if name in conditions:
                keys.setdefault(conditions[name], []).append(run.key)
        if len(keys) > 1:
            each = "; ".join(f"{value} in {', '.join(of)}" for value, of in keys.items())
            parts.append(f"{name} ({each})")
    if not parts:
        return ""
    return f"Scores do not compare across runs that were measured differently: {', '.join(parts)}."


def _shown_metrics(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """By task, the metric that the chart shows: acc_norm, else acc."""
    chosen: dict[str, str] = {}
    for evaluation in evaluations:
        for each in evaluation.tasks:
            name = each.metric.partition(",")[0]
            if name == "acc_norm" or (name == "acc" and each.task not in chosen):
                chosen[each.task] = each.metric
    return chosen


def samples(runs: Runs) -> Section | None:
    """What the dense and the pruned model wrote, beside each other."""
    parts: list[Part] = []
    for run in runs:
        if run.samples:
            parts.append(Heading(run.name, label(run, runs)))
        for each in run.samples:
            parts.append(Text(each.prompt))
            parts.append(SideBySide((("dense", each.dense), (f"{run.key}, pruned", each.pruned))))
    return Section("samples", "Samples", tuple(parts)) if parts else None


def settings(runs: Runs) -> Section:
    """What differs, then where everything comes from."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    # An option that a run is too old to have is no difference.
    differing = [
        name
        for name in names
        if len({run.settings[name] for run in runs if name in run.settings}) > 1
    ]
    keys = tuple(run.key for run in runs)
    rows = [(name, *(run.settings.get(name, NONE) for run in runs)) for name in differing]
    same = Text("One run." if len(runs) == 1 else "All settings are the same.")
    origins = list(dict.fromkeys(name for run in runs for name in (*run.identity, *run.versions)))
    where = [
        (name, *(run.identity.get(name, run.versions.get(name, NONE)) for run in runs))
        for name in origins
    ]
    folders: list[tuple[Cell, ...]] = [(label(run, runs), str(run.folder)) for run in runs]
    every = [(name, *(run.settings.get(name, NONE) for run in runs)) for name in names]
    align = "l" + "w" * len(runs)
    return Section(
        "settings",
        "Settings",
        (
            Text("Settings in which the runs differ."),
            Table(("setting", *keys), align, tuple(rows)) if rows else same,
            Folded("All settings", (Table(("setting", *keys), align, tuple(every)),)),
            Folded("Fingerprints and versions", (Table(("what", *keys), align, tuple(where)),)),
            Folded("Folders", (Table(("run", "folder"), "ll", tuple(folders)),)),
        ),
    )


def _difference(pair: Pair) -> str:
    return (
        f"{pair.pruned - pair.dense:+.4f}"
        if pair.pruned is not None and pair.dense is not None
        else NONE
    )
