"""Where runs part and what they share, from folders by hand."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest

from pipelines.evaluate.pareto import pareto_front
from pipelines.report.analysis import (
    block_votes,
    divergence,
    divergences,
    jaccard,
    overlaps,
    pareto_groups,
)
from pipelines.report.data import num_stderrs
from pipelines.report.folders import read_runs
from tests.pipelines.report.reports import (
    A1,
    A2,
    M3,
    WIDTH,
    Step,
    an_evaluation,
    pair,
    write_run,
)


def test_a_near_tie_is_called_one(tmp_path: Path) -> None:
    found = divergence(*pair(tmp_path, [A1, M3], [A2], text="u"))
    assert (found.kind, found.num_common, found.same_text) == ("choice", 0, False)
    assert found.preferences is not None
    mine, theirs = found.preferences
    assert mine.difference == pytest.approx(0.1)
    assert (mine.stderr, mine.num_stderrs) == (0.2, pytest.approx(0.5))
    assert mine.perplexity_change == pytest.approx(math.exp(2.1) - math.exp(2.0))
    assert theirs.num_stderrs == pytest.approx(1.0)
    assert (
        found.verdict
        == "near-tie: the difference is 0.5 standard errors in A, 1.0 standard errors in B"
    )


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        (
            {"attention:1": (2.7, 0.1), "attention:2": (2.2, 0.0)},
            (
                "near-tie in A only: the difference is "
                "0.5 standard errors in A, 5.0 standard "
                "errors in "
                "B"
            ),
        ),
        (
            {"attention:1": (2.3, None), "attention:2": (2.2, 0.0)},
            (
                "how much is chance is not known: the difference is 0.5 standard errors in A, "
                "0.1000 "
                "nats per token (standard error not "
                "known) in "
                "B"
            ),
        ),
        (
            {"attention:1": (2.2, 0.0), "attention:2": (2.2, 0.0)},
            ("tie: in B both have the same score, and the first in order goes"),
        ),
        (
            {"mlp:3": (2.5, 0.1), "attention:2": (2.2, 0.0)},
            ("only A scored both choices: the difference is 0.5 standard errors in A"),
        ),
    ],
)
def test_verdicts(
    tmp_path: Path, scores: dict[str, tuple[float, float | None]], verdict: str
) -> None:
    assert divergence(*pair(tmp_path, [A1], [("attention:2", scores)])).verdict == verdict


def test_a_clear_choice_is_called_one(tmp_path: Path) -> None:
    steps: list[Step] = [("attention:1", {"attention:1": (2.0, 0.0), "attention:2": (3.0, 0.1)})]
    others: list[Step] = [("attention:2", {"attention:1": (2.9, 0.1), "attention:2": (2.2, 0.0)})]
    found = divergence(*pair(tmp_path, steps, others))
    assert found.verdict == (
        "clear: each prefers its own choice, the difference is 10.0 standard errors in A, 7.0 "
        "standard errors in B"
    )


def test_choices_that_neither_scored_do_not_compare(tmp_path: Path) -> None:
    """As in searches that do not look at scores."""
    first, second = [(name, {name: (2.0, 0.0)}) for name in ("attention:1", "mlp:2")]
    assert divergence(*pair(tmp_path, [first], [second])).verdict.startswith(
        "not comparable: what one chose was not a candidate of the other"
    )  # type: ignore[list-item]


def test_the_same_path_and_a_prefix(tmp_path: Path) -> None:
    whole, same = pair(tmp_path / "same", [A1, M3], [A1, M3])
    assert divergence(whole, same).verdict == "both followed the same path to the end"
    long, short = pair(tmp_path / "prefix", [A1, M3], [A1])
    assert divergence(long, short).num_common == 1
    assert divergence(long, short).verdict == "one path: B is a prefix of A; B ends there, at 5.00%"
    long, stopped = pair(tmp_path / "stopped", [A1, M3], [A1], ended=False)
    assert (
        divergence(stopped, long).verdict
        == "one path: B is a prefix of A; B has not ended, and is at 5.00%"
    )


def test_a_stage_that_ended_earlier_is_no_choice(tmp_path: Path) -> None:
    found = divergence(*pair(tmp_path, [A1, M3], [A1, WIDTH]))
    assert (found.kind, found.num_common, found.preferences) == ("stage", 1, None)
    assert found.verdict == (
        "settings: A is removing residual blocks there, B MLP channels, so the choices are of "
        "different kinds"
    )


def test_other_models_are_not_compared(tmp_path: Path) -> None:
    assert divergences(pair(tmp_path, [A1], [A2], model="other")) == ()


def test_widths_of_other_texts_stand_for_other_channels(tmp_path: Path) -> None:
    assert not divergence(*pair(tmp_path / "a", [WIDTH], [WIDTH], text="u")).same_order
    assert divergence(*pair(tmp_path / "b", [WIDTH], [WIDTH])).same_order


def test_near_ties_are_counted(tmp_path: Path) -> None:
    """Margins of 0.5, 5 and 0.5 standard errors, and in a folder from before they were recorded,
    not known.
    """
    run, old = pair(tmp_path, [A1, M3, WIDTH], [A1], fields=())
    assert [step.near_tie for step in run.steps] == [True, False, True]
    assert [step.num_stderrs for step in run.steps] == pytest.approx([0.5, 5, 0.5])
    assert [step.near_tie for step in old.steps] == [None]
    assert old.steps[0].margin == pytest.approx(0.1)
    assert [
        num_stderrs(*given) for given in ((0.0, 0.0), (0.1, 0.0), (None, 0.1), (0.1, None))
    ] == [0.0, math.inf, None, None]


def test_votes_and_overlaps_by_hand(tmp_path: Path) -> None:
    """A takes attention 1, then MLP 3; B attention 2, MLP 3; C attention 1 only. Widths are no
    blocks.
    """
    paths = [
        write_run(tmp_path / name, steps)
        for name, steps in (("a", [A1, M3, WIDTH]), ("b", [A2, M3]), ("c", [A1]))
    ]
    runs = read_runs([str(path) for path in paths])
    assert [(vote.block, vote.steps) for vote in block_votes(runs)] == [
        (("attention", 1), {"A": 1, "C": 1}),
        (("mlp", 3), {"A": 2, "B": 2}),
        (("attention", 2), {"B": 1}),
    ]
    found = [
        (each.first + each.second, each.at_end, each.num_blocks, each.at_equal)
        for each in overlaps(runs)
    ]
    assert found == [
        ("AB", pytest.approx(1 / 3), 2, pytest.approx(1 / 3)),
        ("AC", 0.5, 1, 1.0),
        ("BC", 0.0, 1, 0.0),
    ]
    assert jaccard(set(), set()) is None


def test_pareto_front_by_hand() -> None:
    points = [(0.0, 10.0), (0.1, 12.0), (0.1, 11.0), (0.2, 11.0), (0.3, 20.0), (0.25, 20.0)]
    assert pareto_front(points, lower_is_better=True) == (True, False, False, True, True, False)
    assert pareto_front(
        [(0.1, 0.5), (0.2, 0.5), (0.2, 0.5), (0.3, 0.4)], lower_is_better=False
    ) == (False, True, True, True)


def test_pareto_front_against_its_definition() -> None:
    points = [
        (0.1 * ratio, float((7 * ratio + 3 * value) % 5))
        for ratio, value in product(range(4), range(3))
    ]
    for (mine, theirs), on_front in zip(
        ((point, points) for point in points),
        pareto_front(points, lower_is_better=True),
        strict=True,
    ):
        as_good = [other for other in theirs if other[0] >= mine[0] and other[1] <= mine[1]]
        assert on_front == all(other == mine for other in as_good)


def test_only_results_on_the_same_text_share_a_front(tmp_path: Path) -> None:
    one, two, other = (
        write_run(
            tmp_path / "one", [A1], heldout=(10.0, 12.0), evaluation=an_evaluation(0.05, 25.0, 0.5)
        ),
        write_run(
            tmp_path / "two",
            [A1, M3],
            heldout=(10.0, 11.0),
            evaluation=an_evaluation(0.25, 30.0, 0.55),
        ),
        write_run(tmp_path / "other", [A2], heldout=(13.0, 14.0)),
    )
    groups = pareto_groups(read_runs([str(one), str(two), str(other)]))
    shown = [
        (
            group.metric,
            [
                (point.run.key if point.run else "", point.value, point.on_front)
                for point in group.points
            ],
        )
        for group in groups
    ]
    assert shown == [
        ("held-out perplexity", [("", 10.0, True), ("A", 12.0, False), ("B", 11.0, True)]),
        ("held-out perplexity", [("", 13.0, True), ("C", 14.0, True)]),
        ("perplexity on wikitext2", [("", 20.0, True), ("A", 25.0, True), ("B", 30.0, True)]),
        ("average accuracy", [("", 0.6, True), ("A", 0.5, False), ("B", 0.55, True)]),
    ]


def test_a_stopped_run_borrows_the_dense_score(tmp_path: Path) -> None:
    whole, stopped = pair(tmp_path / "a", [A1, M3], [A1], ended=False)
    assert (stopped.ended, stopped.dense, stopped.heldout.dense) == (
        False,
        {"block": 9.0, "width": 9.5},
        None,
    )
    assert "has not ended: 5.00% of 50.00% removed after 1 steps" in stopped.outcome
    assert pair(tmp_path / "b", [A1], [A1], ended=False, text="u")[1].dense == {}
    assert whole.dense_shape.text == "2x8*4"
