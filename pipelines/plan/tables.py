"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from pipelines.cli.console import duration
from pipelines.config.target import in_words
from pipelines.plan.serving import serving_rows
from pruning.costs.accounting import NOT_KNOWN, shown_count
from pruning.costs.memory import shown_bytes

LAZY_NOTE = (
    "with search.selection=lazy at most so many evaluations, FLOPs and hours; SmolLM2 to 0.10 took "
    "392 evaluations where scoring all took 902"
)
"""Below a table."""


def plan_table(report: Mapping[str, Any]) -> Table:
    """Of one search, with the time if it was asked for; or of all points of a sweep."""
    return _sweep_table(report) if "points" in report else _search_table(report)


def _search_table(report: Mapping[str, Any]) -> Table:
    rows = Table(
        title=(
            f"{report['model']}, {shown_count(report['num_parameters'])} parameters, "
            + (
                f"less {in_words(None, report['targets'])}"
                if "targets" in report
                else f"to ratio {report['target_ratio']:g}"
            )
        ),
        title_justify="left",
    )
    rows.add_column("")
    for name in ("steps", "evaluations", "ends at ratio"):
        rows.add_column(name, justify="right")
    for stage in report["steps"]:
        steps, evaluations, ratio = (
            report[name][stage] for name in ("steps", "evaluations", "ratio")
        )
        rows.add_row(
            stage,
            *(f"{each['min']:,} to {each['max']:,}" for each in (steps, evaluations)),
            f"{ratio['min']:.4f} to {ratio['max']:.4f}",
        )
    if report.get("at_most"):
        rows.caption = LAZY_NOTE
    rows.add_section()
    if statistics := report.get("statistics"):
        rows.add_row(
            "statistics",
            "",
            f"{statistics['passes']} passes over {statistics['num_tokens']:,} tokens",
            f"{shown_bytes(statistics['bytes'])} on disk",
        )
    rows.add_row("FLOPs", "", _flops(report), "")
    rows.add_row(
        f"memory of an evaluator ({report['dtype']})",
        "",
        shown_bytes(report["peak_bytes_per_evaluator"]),
        "",
    )
    for row in serving_rows(report["memory"]):
        rows.add_row(*row)
    if "rate" in report:
        for row in _time_rows(report):
            rows.add_row(*row)
    if recovery := report.get("recovery"):
        rows.add_section()
        rows.add_row(*_recovery_row(recovery))
    return rows


def _recovery_row(recovery: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The training after the search, which none of the other rows holds."""
    said = [f"{recovery['steps']:,} updates", f"{recovery['num_tokens']:,} tokens"]
    said.append(f"{_flops(recovery)} FLOPs")
    if recovery.get("hours") is not None:
        said.append(f"{duration(recovery['hours'] * 3600)} at that rate")
    return "recovery after it, at most", "", ", ".join(said), ""


def _time_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    count = report["num_evaluators"]
    if report["rate"]["source"] is not None:
        yield "rate of an evaluator", "", _rate_in_words(report["rate"]), ""
    time = _why_no_time(report) or duration(report["hours"] * 3600)
    yield f"time on {count} evaluator{'s' if count > 1 else ''}", "", time, ""


def _sweep_table(report: Mapping[str, Any]) -> Table:
    points, stages = report["points"], list(report["evaluations"])
    rows = Table(title=f"{len(points)} points: evaluations by stage", title_justify="left")
    rows.add_column("point")
    for name in (*(stage.replace("_", " ") for stage in stages), "FLOPs", "time"):
        rows.add_column(name, justify="right")
    for each in (*points, report):
        if each is report:
            rows.add_section()
        ranges = [each["evaluations"].get(stage) for stage in stages]
        cells = [f"{found['min']:,} to {found['max']:,}" if found else "" for found in ranges]
        rows.add_row(
            each.get("name", "all, what they share paid for once"),
            *cells,
            _flops(each),
            "" if each["hours"] is None else duration(each["hours"] * 3600),
        )
    times = [_why_no_time(point) or _rate_in_words(point["rate"]) for point in points]
    notes = [f"time: {each}" for each in dict.fromkeys(times)]
    if any(point.get("at_most") for point in points):
        notes.append(LAZY_NOTE)
    rows.caption, rows.caption_justify = "\n".join(notes), "left"
    return rows


def _flops(report: Mapping[str, Any]) -> str:
    return NOT_KNOWN if report["flops"] is None else f"{report['flops']:.2e}"


def _rate_in_words(rate: Mapping[str, Any]) -> str:
    sources = {"given": "given", "run": "as the search of rate_of had"}
    measured = f"measured here in {rate.get('seconds', 0):.0f} s, alone"
    return f"{rate['tflops']:.3g} TFLOP/s, {sources.get(rate['source'], measured)}"


def _why_no_time(report: Mapping[str, Any]) -> str:
    """What stands where the time would; "" if that is known."""
    if report["flops"] is None:
        return f"{NOT_KNOWN}: FLOPs of this architecture are not counted"
    return "" if report["hours"] is not None else str(report["rate"]["reason"])
