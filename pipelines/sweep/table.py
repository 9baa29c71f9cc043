"""What a sweep came to: sweep.json for scripts, a table for people, metrics for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.evaluate.pareto import pareto_front
from pipelines.sweep.outcomes import Key, Outcome

LOWER_IS_BETTER = {"accuracy": False}
"""Whether a smaller number is better; perplexities are."""


def selection_metric(points: Sequence[Outcome]) -> str:
    """The number that decides which point is best: perplexity on text that no search has seen,
    where all have it.
    """
    done = [outcome for outcome in points if outcome.values]
    return next(
        (
            name
            for name in ("heldout_perplexity", "block_perplexity")
            if all(name in outcome.values for outcome in done)
        ),
        "block_perplexity",
    )


def sweep_report(
    points: Sequence[Outcome], order: Sequence[Outcome], metric: str, max_perplexity_ratio: float
) -> dict[str, Any]:
    """What sweep.json says.

    Args:
        points: as they are shown.
        order: those that ran, in the order in which they did, which decides what is new in each.
        metric: that decides which one is best.
    """
    paid = _paid(order)
    fronts = _fronts(points)
    best = _best(points, metric, max_perplexity_ratio)
    return {
        "points": [
            _row(outcome, paid.get(outcome.point.name, {}), fronts, best) for outcome in points
        ],
        "evaluations": {
            stage: {
                name: sum(each[stage][name] for each in paid.values() if stage in each)
                for name in ("needed", "new")
            }
            for stage in dict.fromkeys(stage for each in paid.values() for stage in each)
        },
        "best": best,
        "rule": (
            f"the largest ratio whose {metric} is at most {max_perplexity_ratio:g} times "
            "that of the dense model; of equal ratios the lowest"
        ),
        "pareto": fronts,
    }


def table(report: Mapping[str, Any]) -> Table:
    """As a person reads it."""
    rows, names = report["points"], _columns(report["points"])
    shown = Table(
        title=f"{len(rows)} points; best: {report['best'] or 'none'}, {report['rule']}",
        title_justify="left",
    )
    for name, side in (
        ("point", "left"),
        ("ratio", "right"),
        *((name.replace("_", " "), "right") for name in names),
        ("steps", "right"),
    ):
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    for name in ("evaluations", "of them new", "front"):
        shown.add_column(name, justify="right")
    dense: Mapping[str, float] = next((row["dense"] for row in rows if row["dense"]), {})
    comparable = all(row["dense"] in (dense, {}) for row in rows)  # one model, one text for all
    if dense and comparable:
        shown.add_row(
            "dense", "0.0000", *(_number(dense.get(name)) for name in names), "", "", "", ""
        )
        shown.add_section()
    for row in rows:
        if row["ratio"] is None:
            shown.add_row(row["name"], f"{row['status']}: {row['problem']}")
            continue
        counts = [
            sum(each[name] for each in row["evaluations"]["stages"].values())
            for name in ("needed", "new")
        ]
        on_front = set(names) & set(row["pareto"])  # of a column that is not shown says nothing
        marks = ("*" if row["name"] == report["best"] else "") + ("o" if on_front else "")
        cells = [_number(row["values"].get(name)) for name in names]
        name = row["name"] if row["problem"] is None else f"{row['name']} ({row['status']})"
        shown.add_row(
            name,
            f"{row['ratio']:.4f}",
            *cells,
            str(row["steps"]),
            *(f"{count:,}" for count in counts),
            marks,
        )
    shown.add_section()
    totals = [
        sum(each[name] for each in report["evaluations"].values()) for name in ("needed", "new")
    ]
    shown.add_row("all", "", *("" for _ in names), "", *(f"{total:,}" for total in totals), "")
    shown.caption = (
        "*: best; o: on the Pareto front of ratio and a number of its columns. New: "
        "not in common with a point that ran before"
    )
    if not comparable:
        shown.caption += ". Points of different models, texts or documents do not compare: each "
        shown.caption += "kind has a front of its own"
    return shown


def _row(
    outcome: Outcome,
    stages: Mapping[str, Mapping[str, int]],
    fronts: Mapping[str, Sequence[str]],
    best: str | None,
) -> dict[str, Any]:
    name = outcome.point.name
    status = (
        "done"
        if outcome.problem is None
        else "not run"
        if outcome.problem == "not run yet"
        else "failed"
    )
    return {
        "name": name,
        "settings": dict(outcome.point.settings),
        "status": status,
        "problem": outcome.problem,
        "folder": outcome.folder,
        "target_ratio": outcome.target_ratio,
        "ratio": outcome.ratio,
        "perplexity": {
            key.removesuffix("_perplexity"): value
            for key, value in outcome.values.items()
            if key.endswith("_perplexity")
        },
        "values": dict(outcome.values),
        "stderrs": dict(outcome.stderrs),
        "dense": dict(outcome.dense),
        "steps": outcome.num_steps,
        "evaluations": {
            **outcome.evaluations,
            "stages": {stage: dict(counts) for stage, counts in stages.items()},
        },
        "seconds": outcome.seconds,
        "best": name == best,
        "pareto": [metric for metric, names in fronts.items() if name in names],
    }


def _paid(order: Sequence[Outcome]) -> dict[str, dict[str, dict[str, int]]]:
    """By point and stage: (candidate, batch) pairs that it needs, and those that no point before it
    did. The same however often the sweep was stopped.
    """
    seen: set[tuple[str, Key]] = set()
    paid = {}
    for outcome in order:
        stages = {}
        for stage, candidates in outcome.candidates.items():
            new = {
                key: batches
                for key, batches in candidates.items()
                if (outcome.model, key) not in seen
            }
            stages[stage] = {"needed": sum(candidates.values()), "new": sum(new.values())}
            seen |= {(outcome.model, key) for key in new}
        paid[outcome.point.name] = stages
    return paid


def _fronts(points: Sequence[Outcome]) -> dict[str, list[str]]:
    """For each number, the points that no other one of the same model, on the same text, beats in
    it and in ratio; one that is not what was asked for may beat, but is not on the front.
    """
    fronts: dict[str, list[str]] = {}
    for metric in dict.fromkeys(name for outcome in points for name in outcome.values):
        groups: dict[tuple[str, str], list[Outcome]] = {}
        for outcome in points:
            if outcome.ratio is not None and metric in outcome.values:
                groups.setdefault((outcome.model, outcome.measured_on.get(metric, "")), []).append(
                    outcome
                )
        fronts[metric] = []
        for group in groups.values():
            front = pareto_front(
                [(outcome.ratio or 0.0, outcome.values[metric]) for outcome in group],
                lower_is_better=LOWER_IS_BETTER.get(metric, True),
            )
            fronts[metric] += [
                outcome.point.name
                for outcome, on_front in zip(group, front, strict=True)
                if on_front and outcome.problem is None
            ]
    return fronts


def _best(points: Sequence[Outcome], metric: str, max_perplexity_ratio: float) -> str | None:
    good = [
        (
            -(outcome.ratio or 0.0),
            outcome.values[metric] / outcome.dense[metric],
            outcome.point.name,
        )
        for outcome in points
        if outcome.problem is None
        and metric in outcome.values
        and outcome.values[metric] <= max_perplexity_ratio * outcome.dense.get(metric, 0.0)
    ]
    return min(good)[2] if good else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row["values"])
    return [name for name in names if name not in ("block_perplexity", "width_perplexity")] or list(
        names
    )[:1]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:,.2f}"
