"""Which run is the best and why, by hand: held-out sequences have 2.0, 2.2, 2.4 and 2.6 nats per
token in the dense model, a perplexity of 9.97.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.best import Best, best_of
from pipelines.report.data import ReportRun
from pipelines.report.folders import read_runs
from pipelines.report.fronts import ParetoGroup, first_group, pareto_groups
from pipelines.report.result_charts import pareto
from tests.pipelines.report.reports import A1, A2, M3, WIDTH, Step, an_evaluation, write_run
from tests.pipelines.report.reports import heldout_nll as nll

FIVE = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")
DENSE = (2.0, 2.2, 2.4, 2.6)
RISE = (0.1, 0.1, 0.11, 0.09)
"""Of a good run, over the sequences."""


def rising(*rise: float) -> dict[str, Any]:
    return nll(*(start + each for start, each in zip(DENSE, rise, strict=True)))


def read(folder: Path, *given: tuple[list[Step], dict[str, Any]]) -> tuple[ReportRun, ...]:
    """Runs A, B, ..., each of its steps and what else `write_run` takes."""
    return read_runs(
        [
            str(write_run(folder / f"run{number}", steps, **changes))
            for number, (steps, changes) in enumerate(given)
        ]
    )


def judged(runs: tuple[ReportRun, ...]) -> tuple[ParetoGroup, Best]:
    group = first_group(pareto_groups(runs))
    assert group is not None
    return group, best_of(group)


def keys(best: Best) -> tuple[str | None, list[str]]:
    point = best.point.run.key if best.point and best.point.run else None
    return point, [each.run.key for each in best.near if each.run]


def test_a_difference_of_two_standard_errors_makes_the_best(tmp_path: Path) -> None:
    """Sequences differ by far more than runs do, and all alike: paired, 0.05 is clear."""
    runs = read(
        tmp_path,
        ([A1], {"summary": rising(*(each + 0.05 for each in RISE))}),
        ([A2], {"summary": rising(*RISE)}),
    )
    group, best = judged(runs)
    assert keys(best) == ("B", [])
    assert best.why == (
        "Of the 2 runs at 5.0 % removed, B (run1) has the lowest held-out perplexity, 11.02; dense "
        "9.97. The next, A (run0), has 11.59, over 100 standard errors away."
    )
    assert group.points[1].stderr == pytest.approx(11.588 * math.sqrt(0.0002 / 3 / 4), rel=1e-3)


def test_less_than_two_standard_errors_may_be_chance(tmp_path: Path) -> None:
    """B's sequences are worse by 0.01 on average with a standard error of 0.0173, C's by far."""
    runs = read(
        tmp_path,
        ([A1], {"summary": rising(*RISE)}),
        ([A2], {"summary": rising(0.15, 0.06, 0.14, 0.09)}),
        ([A1], {"summary": rising(0.5, 0.52, 0.5, 0.51)}),
    )
    _, best = judged(runs)
    assert keys(best) == ("A", ["B"])
    assert "Chance may have decided: B (run1) is less than 2 standard errors away." in best.why


def test_without_standard_errors_chance_is_not_known(tmp_path: Path) -> None:
    runs = read(tmp_path, ([A1], {"heldout": (10.0, 12.0)}), ([A2], {"heldout": (10.0, 11.0)}))
    _, best = judged(runs)
    assert keys(best) == ("B", [])
    assert best.why.endswith(
        "The next, A (run0), has 12.00; how much of the difference is chance is not known."
    )


def test_equal_runs_are_none_of_them_the_best(tmp_path: Path) -> None:
    """Where no standard error is known, too."""
    heldout = {"dense": 10.0, "pruned": 12.0}
    equal = {"perplexity": {"block": {"dense": 9.0, "pruned": 11.0}, "heldout": heldout}}
    runs = read(tmp_path, ([A1], {"summary": equal}), ([A2], {"summary": equal}))
    _, best = judged(runs)
    assert keys(best) == ("A", ["B"])
    assert "Chance may have decided: B (run1) is less than 2 standard errors away." in best.why


def test_a_control_is_named_and_may_win(tmp_path: Path) -> None:
    random = {"settings": {"search.strategy": "random"}}
    runs = read(
        tmp_path / "loses",
        ([A1], {"heldout": (10.0, 11.0)}),
        ([A2], {"heldout": (10.0, 12.0)}),
        ([A2], {"heldout": (10.0, 14.0)} | random),
    )
    assert "The best control, C (run2), has 14.00" in judged(runs)[1].why
    runs = read(
        tmp_path / "wins",
        ([A1], {"heldout": (10.0, 12.0)}),
        ([A2], {"heldout": (10.0, 11.0)} | random),
    )
    group, best = judged(runs)
    assert keys(best) == ("B", [])
    assert "B looked at no score: nothing here is better than a control." in best.why
    symbols = {trace.name: trace.marker.symbol for trace in pareto(group, runs, best).data}
    assert symbols["B run1"] == "square-open"
    assert symbols["A run0"] == "circle"


def test_only_runs_of_about_the_same_size_compete(tmp_path: Path) -> None:
    """A removed little and is better than all; B and C removed as much as each other."""
    small, whole = {"heldout": (10.0, 10.5)}, [A1, M3]
    runs = read(
        tmp_path / "peers",
        ([A1], small),
        (whole, {"heldout": (10.0, 14.0)}),
        (whole, {"heldout": (10.0, 13.0)}),
    )
    assert keys(judged(runs)[1]) == ("C", [])
    runs = read(tmp_path / "none", ([A1], small), (whole, {"heldout": (10.0, 14.0)}))
    _, best = judged(runs)
    assert keys(best) == (None, [])
    assert best.why == (
        "No two runs are of about the same size, so that none is the best. Not beaten: A (run0), "
        "B (run1); dense 10.00."
    )
    runs = read(tmp_path / "all", ([A1], small), (whole, {"heldout": (10.0, 10.2)}))
    _, best = judged(runs)
    assert keys(best) == ("B", [])
    assert best.why.startswith("Of the 2 runs at 5.0 to 25.0 % removed, B (run1) has the lowest")


def test_a_smaller_model_that_is_better_beats_its_elders(tmp_path: Path) -> None:
    runs = read(
        tmp_path,
        ([A1], {"heldout": (10.0, 12.0)}),
        ([A2], {"heldout": (10.0, 13.0)}),
        ([A1, M3, WIDTH], {"heldout": (10.0, 11.0)}),
    )
    assert keys(judged(runs)[1]) == ("C", [])


def test_a_smaller_model_that_is_worse_is_another_trade(tmp_path: Path) -> None:
    runs = read(
        tmp_path,
        ([A1], {"heldout": (10.0, 12.0)}),
        ([A2], {"heldout": (10.0, 13.0)}),
        ([A1, M3, WIDTH], {"heldout": (10.0, 40.0), "settings": {"search.strategy": "random"}}),
    )
    _, best = judged(runs)
    assert keys(best) == ("A", [])
    assert best.why.startswith("Of the 2 runs at 5.0 % removed, A (run0) has the lowest")
    assert "C" not in best.why


def test_one_run_is_described(tmp_path: Path) -> None:
    _, best = judged(read(tmp_path, ([A1], {"heldout": (10.0, 12.0)})))
    assert (best.point, best.why) == (
        None,
        "A (run0): held-out perplexity 12.00 at 5.0 % removed; dense 10.00.",
    )


def evaluated(average: float) -> dict[str, Any]:
    report = an_evaluation(0.05, 25.0, average)
    for part in (report, report["dense"]):
        part["tasks"] = dict.fromkeys(FIVE, part["tasks"]["piqa"])
    return {"evaluation": report}


def test_what_was_measured_of_all_comes_before_heldout_text(tmp_path: Path) -> None:
    """Five tasks with a standard error of 1.1 points each: 0.49 points of their average."""
    runs = read(tmp_path / "near", ([A1], evaluated(0.5)), ([A2], evaluated(0.51)))
    group, best = judged(runs)
    assert (group.metric, keys(best)) == ("average accuracy", ("B", ["A"]))
    assert [point.stderr for point in group.runs] == pytest.approx([0.011 / math.sqrt(5)] * 2)
    runs = read(tmp_path / "clear", ([A1], evaluated(0.5)), ([A2], evaluated(0.52)))
    assert keys(judged(runs)[1]) == ("B", [])
    runs = read(tmp_path / "one", ([A1], evaluated(0.5)), ([A2], {}))
    assert judged(runs)[0].metric == "held-out perplexity"


def timed(pruned_ns: float, measured: bool = False) -> dict[str, Any]:
    phase = {"dense_seconds": 0.004, "pruned_seconds": 0.002}
    clock = {"measured": {"device": "cpu", "prefill": phase, "decode": phase}} if measured else {}
    return {"costs": {"decode": {"dense": 5e6, "pruned": pruned_ns}}, "latency": clock}


def test_targets_in_time_make_a_front_over_milliseconds(tmp_path: Path) -> None:
    """Where all were timed alike; the faster and worse one, and the slower and better, stay."""
    runs = read(
        tmp_path / "table",
        ([A1], {"summary": timed(3e6), "heldout": (10.0, 12.0)}),
        ([A2], {"summary": timed(2e6), "heldout": (10.0, 14.0)}),
        ([A1], {"summary": timed(3.5e6), "heldout": (10.0, 13.0)}),
    )
    group, best = judged(runs)
    assert group.time == "decode of a batch, by the table"
    assert [point.size for point in group.points] == pytest.approx([5.0, 3.0, 2.0, 3.5])
    assert [point.on_front for point in group.points] == [True, True, True, False]
    assert keys(best) == (None, [])
    figure = pareto(group, runs, best)
    assert figure.layout.xaxis.title.text.startswith("milliseconds, decode of a batch")
    assert [trace.x[0] for trace in figure.data[1:]] == pytest.approx([5.0, 3.0, 2.0, 3.5])
    clock = read(tmp_path / "clock", ([A1], {"summary": timed(3e6, measured=True)}))
    assert [point.size for point in judged(clock)[0].points] == pytest.approx([4.0, 2.0])
    mixed = read(
        tmp_path / "mixed", ([A1], {"summary": timed(3e6)}), ([A2], {"summary": timed(2e6, True)})
    )
    assert [point.size for point in judged(mixed)[0].points] == pytest.approx([0.0, 0.05, 0.05])
