"""Where runs part and what they share, from folders by hand."""

from __future__ import annotations

import json
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
)
from pipelines.report.folders import read_runs
from pipelines.report.fronts import pareto_groups
from pipelines.report.results import benchmarks, fronts
from pipelines.runs.near_ties import num_stderrs
from tests.pipelines.report.reports import (
    A1,
    A2,
    HEAD,
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
            ("tie: in B both are as good, and the first in order goes"),
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


@pytest.mark.parametrize(
    ("width", "another"),
    [
        (
            WIDTH,
            ("mlp_channels:1:6", {"mlp_channels:0:6": (2.7, 0.1), "mlp_channels:1:6": (2.6, 0.0)}),
        ),
        (HEAD, ("attention_heads:2:1", {"attention_heads:2:1": (2.6, 0.0)})),
    ],
    ids=["channels", "heads"],
)
def test_widths_of_other_orders_stand_for_other_channels(
    tmp_path: Path, width: Step, another: Step
) -> None:
    """The paths are the same up to the first width; blocks do not depend on the order."""
    parted = divergence(*pair(tmp_path / "a", [A1, width], [A1, width], text="u"))
    assert (parted.kind, parted.num_common, parted.preferences) == ("order", 1, None)
    assert parted.verdict.startswith("settings: A and B sorted their channels differently")
    changes = {"settings": {"search.importance": "l1"}}
    other = divergence(*pair(tmp_path / "b", [A1, width], [A1, another], **changes))
    assert (other.kind, other.num_common) == ("order", 1)
    assert divergence(*pair(tmp_path / "c", [A1, width], [A1, width])).kind == "same"
    assert divergence(*pair(tmp_path / "d", [A1, M3], [A1, M3], text="u")).kind == "same"


def test_runs_that_judge_by_other_things_have_no_choice_in_common(tmp_path: Path) -> None:
    by_cost = {"search.judged_by": "score_per_cost"}
    parted = divergence(*pair(tmp_path / "a", [A1, M3], [M3, A1], settings=by_cost))
    assert (parted.kind, parted.num_common, parted.preferences) == ("judge", 0, None)
    assert parted.verdict.startswith("settings: A and B compare candidates by different things")
    assert divergence(*pair(tmp_path / "b", [A1, M3], [M3, A1])).kind == "choice"


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


def test_a_worse_but_less_certain_candidate_makes_a_near_tie(tmp_path: Path) -> None:
    """The second best lost by five standard errors, the third by one and the fourth by 1.9."""
    scores = {
        "attention:1": (2.0, 0.0),
        "attention:2": (2.5, 0.1),
        "mlp:3": (2.6, 0.6),
        "mlp:0": (3.9, 1.0),
        "mlp:1": (4.1, 1.0),
    }
    run, _ = pair(tmp_path, [("attention:1", scores), M3], [A1])
    step = run.steps[0]
    assert step.near_tie
    assert step.num_within == 2
    assert step.num_stderrs == pytest.approx(1.0)
    assert step.distances == pytest.approx([1.0, 1.9, 2.1, 5.0])
    assert not run.steps[1].near_tie
    assert [each.number for each in run.near_ties] == [1]


def test_the_margin_counts_where_candidates_have_no_standard_errors(tmp_path: Path) -> None:
    run, _ = pair(tmp_path, [A1], [A1], fields=("margin_stderr",))
    old, _ = pair(tmp_path / "more", [A1], [A1], fields=())
    assert run.steps[0].near_tie
    assert old.steps[0].near_tie


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


def test_each_source_of_a_mixture_has_a_front_of_its_own(tmp_path: Path) -> None:
    """Better on one text and worse on the other: none is beaten. A run of one text stands beside
    the mixtures that hold it.
    """
    whole = {"heldout": (11.0, 13.0)}
    paths = [
        write_run(tmp_path / "one", [A1], sources={"a": (10.0, 12.0), "b": (20.0, 25.0)}, **whole),
        write_run(tmp_path / "two", [A2], sources={"a": (10.0, 13.0), "b": (20.0, 24.0)}, **whole),
        write_run(tmp_path / "alone", [M3], heldout=(10.0, 11.0)),
    ]  # type: ignore[arg-type]
    summary = json.loads((paths[2] / "summary.json").read_text())
    summary["calibration"]["heldout"]["fingerprint"] = "a"
    (paths[2] / "summary.json").write_text(json.dumps(summary))
    runs = read_runs([str(path) for path in paths])
    assert [set(run.dense) for run in runs] == [{"block", "width", "heldout"}] * 3
    values = {
        group.metric: {point.run.key if point.run else "": point.value for point in group.points}
        for group in pareto_groups(runs)
    }
    assert values == {
        "held-out perplexity": {"": 11.0, "A": 13.0, "B": 13.0},
        "held-out perplexity, a": {"": 10.0, "A": 12.0, "B": 13.0, "C": 11.0},
        "held-out perplexity, b": {"": 20.0, "A": 25.0, "B": 24.0},
    }


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"settings": {"dtype": "float32"}}, "dtype (bfloat16 in A; float32 in B)"),
        ({"settings": {"data_dir": "/other"}}, "data_dir (None in A; /other in B)"),
        ({"versions": {"lm_eval": "0.4.12"}}, "lm-eval (0.4.13 in A; 0.4.12 in B)"),
        (
            {"tasks": {"piqa": {"acc": 0.5, "num_documents": 1838}}},
            "documents of piqa (100 in A; 1838 in B)",
        ),
    ],
    ids=["dtype", "data_dir", "harness", "documents"],
)
def test_accuracies_that_were_measured_differently_share_no_front(
    tmp_path: Path, changes: dict[str, dict[str, object]], differs: str
) -> None:
    theirs = an_evaluation(0.05, 25.0, 0.55)
    for name, values in changes.items():
        theirs[name] |= values
    one = write_run(tmp_path / "one", [A1], evaluation=an_evaluation(0.05, 25.0, 0.5))
    two = write_run(tmp_path / "two", [A1], evaluation=theirs)
    runs = read_runs([str(one), str(two)])
    groups = [group for group in pareto_groups(runs) if group.metric == "average accuracy"]
    assert [[point.value for point in group.points] for group in groups] == [
        [0.6, 0.5],
        [0.6, 0.55],
    ]
    texts = [group for group in pareto_groups(runs) if group.metric == "perplexity on wikitext2"]
    assert len(texts) == (2 if "dtype" in changes.get("settings", {}) else 1)
    for section in (str(fronts(runs)), str(benchmarks(runs))):
        assert "Scores do not compare across runs that were measured differently" in section
        assert differs in section


def test_another_task_beside_the_five_does_not_part_their_averages(tmp_path: Path) -> None:
    theirs = an_evaluation(0.05, 25.0, 0.55)
    theirs["tasks"]["boolq"] = {"acc": 0.5, "num_documents": 3270}
    one = write_run(tmp_path / "one", [A1], evaluation=an_evaluation(0.05, 25.0, 0.5))
    two = write_run(tmp_path / "two", [A1], evaluation=theirs)
    runs = read_runs([str(one), str(two)])
    groups = [group for group in pareto_groups(runs) if group.metric == "average accuracy"]
    assert [len(group.points) for group in groups] == [3]
    assert "measured differently" not in f"{fronts(runs)} {benchmarks(runs)}"


def test_perplexities_in_other_dtypes_come_with_a_word_where_no_chart_is(tmp_path: Path) -> None:
    paths = []
    for dtype in ("float32", "bfloat16"):
        report = an_evaluation(0.05, 25.0, 0.55) | {"tasks": {}, "average": None}
        report["settings"] |= {"dtype": dtype}
        paths.append(write_run(tmp_path / dtype, [A1], evaluation=report))
    said = str(benchmarks(read_runs([str(path) for path in paths])))
    assert "dtype (float32 in A; bfloat16 in B)" in said


def test_heldout_perplexities_in_two_dtypes_share_no_front(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / name, [A1]) for name in ("one", "two"))
    record = json.loads((two / "run.json").read_text())
    record["identity"]["model.dtype"] = "bfloat16"
    (two / "run.json").write_text(json.dumps(record))
    groups = pareto_groups(read_runs([str(one), str(two)]))
    assert [group.metric for group in groups] == ["held-out perplexity"] * 2


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
