"""What was expected beside what was measured: one row for each figure, within its tolerance or
outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

from pipelines.config.expected import ReferenceMetrics, Tolerance
from pipelines.evaluate.benchmarks import average_stderr

Value = int | float | str | None
Outcome = Literal["within", "outside", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One row.

    Args:
        note: why it was not checked, or where it differs.
    """

    quantity: str
    expected: Value
    measured: Value
    difference: int | float | None
    tolerance: int | float | None
    verdict: Outcome
    note: str = ""


def compared(
    quantity: str, expected: float | None, measured: float | None, tolerance: float
) -> Check:
    """Two numbers. What is not known on either side is not checked."""
    if expected is None or measured is None:
        return not_checked(
            quantity,
            "no figure is expected" if expected is None else "it was not measured",
            expected=expected,
            measured=measured,
        )
    difference = measured - expected
    return Check(
        quantity,
        expected,
        measured,
        difference,
        tolerance,
        "within" if abs(difference) <= tolerance else "outside",
    )


def contained(quantity: str, expected: tuple[float, float], measured: tuple[float, float]) -> Check:
    """What is expected, a number or a range, must lie in the range that was found."""
    inside = measured[0] <= expected[0] and expected[1] <= measured[1]
    return Check(
        quantity,
        _shown_range(expected),
        _shown_range(measured),
        None,
        None,
        "within" if inside else "outside",
    )


def same(quantity: str, expected: Sequence[Any], measured: Sequence[Any]) -> Check:
    """Two lists, which must be equal. The note names the first difference."""
    wanted, found = (" ".join(map(str, values)) or "none" for values in (expected, measured))
    first = next(
        (
            index
            for index, pair in enumerate(zip(expected, measured, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(expected), len(measured)),
    )
    if list(expected) == list(measured):
        return Check(quantity, wanted, found, 0, 0, "within")
    there = [
        str(values[first]) if first < len(values) else "nothing more"
        for values in (expected, measured)
    ]
    num_different = max(len(expected), len(measured)) - sum(
        a == b for a, b in zip(expected, measured, strict=False)
    )
    return Check(
        quantity,
        wanted,
        found,
        num_different,
        0,
        "outside",
        f"first at place {first + 1}: {there[0]} is expected, {there[1]} was found",
    )


def not_checked(
    quantity: str, why: str, *, expected: Value = None, measured: Value = None
) -> Check:
    """A row that says why there is no verdict."""
    return Check(quantity, expected, measured, None, None, "not checked", why)


def compared_quality(
    role: str, expected: ReferenceMetrics, measured: dict[str, Any], tolerance: Tolerance
) -> list[Check]:
    """Perplexities and accuracies of one model.

    Args:
        measured: as in evaluation.json: `perplexity`, `tasks`, `average`.
    """
    found = []
    for text, value in expected.perplexity.items():
        allowed = tolerance.perplexity * value + tolerance.perplexity_rounding
        found.append(
            compared(
                f"{role}: perplexity, {text}", value, measured["perplexity"].get(text), allowed
            )
        )
    for task, value in expected.accuracy.items():
        of_task = measured["tasks"].get(task, {})
        metric = "acc_norm" if of_task.get("acc_norm") is not None else "acc"
        allowed = (
            tolerance.accuracy_stderrs * (of_task.get(f"{metric}_stderr") or 0.0)
            + tolerance.accuracy_rounding
        )
        found.append(compared(f"{role}: accuracy, {task}", value, of_task.get(metric), allowed))
    if expected.accuracy_average is not None:
        allowed = (
            tolerance.accuracy_stderrs * (average_stderr(measured["tasks"]) or 0.0)
            + tolerance.accuracy_rounding
        )
        found.append(
            compared(
                f"{role}: accuracy, average",
                expected.accuracy_average,
                measured["average"],
                allowed,
            )
        )
    return found


def summed_up(checks: Sequence[Check]) -> dict[str, Any]:
    """For verdict.json."""
    counts = {
        outcome: sum(check.verdict == outcome for check in checks)
        for outcome in ("within", "outside", "not checked")
    }
    whole = "outside" if counts["outside"] else "within" if counts["within"] else "not checked"
    return {
        "verdict": whole,
        **{f"num_{name.replace(' ', '_')}": count for name, count in counts.items()},
        "checks": [asdict(check) for check in checks],
    }


def table(title: str, checks: Sequence[Check]) -> Table:
    """As a person reads it."""
    shown = Table(title=title, title_justify="left", caption_justify="left")
    for name in ("", "expected", "measured", "difference", "tolerance"):
        shown.add_column(name, justify="right" if name else "left", overflow="fold")
    shown.add_column("verdict", overflow="fold")
    styles = {"within": "green", "outside": "red", "not checked": "yellow"}
    for check in checks:
        verdict = f"[{styles[check.verdict]}]{check.verdict}[/]" + (
            f": {check.note}" if check.note else ""
        )
        shown.add_row(
            check.quantity,
            *map(_cell, (check.expected, check.measured, check.difference, check.tolerance)),
            verdict,
        )
    return shown


def _shown_range(values: tuple[float, float]) -> str:
    low, high = (_cell(value) for value in values)
    return low if low == high else f"{low} to {high}"


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if len(value) <= 60 else value[:57] + "..."
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5f}" if abs(value) < 1 else f"{value:,.3f}"
