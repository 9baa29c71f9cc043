"""What the table of a sweep marks, from outcomes by hand."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pipelines.config.grid import Point
from pipelines.sweep.outcomes import Outcome
from pipelines.sweep.table import sweep_report, table


def outcome(name: str, ratio: float, **changes: Any) -> Outcome:
    values = {"block_perplexity": 9.0} | changes.pop("values")
    given: dict[str, Any] = {
        "problem": None,
        "model": "m",
        "dense": {"block_perplexity": 5.0, "heldout_perplexity": 6.0},
        "measured_on": {"heldout_perplexity": "t"},
    }
    return Outcome(Point(name, {}), name, ratio=ratio, values=values, **(given | changes))


def shown(*points: Outcome) -> tuple[dict[str, str], str]:
    """What the last column says of each point, and everything."""
    report = sweep_report(points, points, "heldout_perplexity", 1.1)
    console = Console(file=io.StringIO(), width=200)
    made = table(report)
    console.print(made)
    names = [str(cell) for cell in made.columns[0].cells]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return dict(zip(names, map(str, made.columns[-1].cells), strict=True)), text


def test_a_number_that_is_not_shown_puts_no_row_on_the_front() -> None:
    """The second is best on the block calibration text, which has no column."""
    marks, _ = shown(
        outcome("one", 0.2, values={"heldout_perplexity": 8.0, "block_perplexity": 9.0}),
        outcome("two", 0.1, values={"heldout_perplexity": 8.5, "block_perplexity": 7.0}),
    )
    assert (marks["one"], marks["two"]) == ("o", "")


def test_a_point_that_failed_beats_others_and_is_not_on_the_front() -> None:
    """Its search ended, its evaluation did not."""
    marks, text = shown(
        outcome("good", 0.1, values={"heldout_perplexity": 8.0}),
        outcome("failed", 0.2, values={"heldout_perplexity": 7.0}, problem="no export"),
    )
    assert (marks["good"], marks["failed (failed)"]) == ("", "")
    assert "of its own" not in text


def test_points_on_different_texts_have_fronts_of_their_own_and_the_table_says_so() -> None:
    other = {"block_perplexity": 5.0, "heldout_perplexity": 6.5}
    marks, text = shown(
        outcome("here", 0.1, values={"heldout_perplexity": 8.0}),
        outcome(
            "there",
            0.2,
            values={"heldout_perplexity": 7.0},
            dense=other,
            measured_on={"heldout_perplexity": "u"},
        ),
    )
    assert (marks["here"], marks["there"]) == ("o", "*o")
    assert "each kind has a front of its own" in " ".join(text.split())


def test_accuracies_on_other_documents_have_fronts_of_their_own() -> None:
    values = {"accuracy": 0.5, "heldout_perplexity": 8.0}
    report = sweep_report(
        [
            outcome("few", 0.1, values=values, measured_on={"accuracy": "100"}),
            outcome("all", 0.2, values=values, measured_on={"accuracy": "1838"}),
        ],
        [],
        "heldout_perplexity",
        1.1,
    )
    assert report["pareto"]["accuracy"] == ["few", "all"]
