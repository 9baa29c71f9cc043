"""The greedy search towards other costs than parameters, as a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.costs.latency import LatencyTable
from pruning.shape import ModelShape
from tests.pipelines.conftest import Cli, Search
from tests.pruning.costs.tables import MLP, written

NO_RATIO = "search.target_ratio=null"
GREEDY = ("search=multipruner", "search.distribution=[40,40,20]")
BY_COST = "search.judged_by=score_per_cost"


def lines_of(trajectory: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trajectory]


def test_a_search_ends_by_two_costs_and_goes_on_to_the_same_bytes(search: Search) -> None:
    words = (*GREEDY, NO_RATIO, "search.target.flops=0.2", "search.target.kv_cache=0.3", BY_COST)
    outcome = search(*words)
    assert outcome.status == 0, outcome.output
    whole, lines = outcome.trajectory, lines_of(outcome.trajectory)
    kept = [line["saved"]["flops"] >= 0.2 and line["saved"]["kv_cache"] >= 0.3 for line in lines]
    assert kept == [False] * (len(lines) - 1) + [True]
    identity = outcome.summary["identity"]
    assert identity["search.judged_by"] == "score_per_cost"
    assert identity["search.target.flops"] == 0.2
    assert "search.target_ratio" not in identity
    plan, taken = outcome.summary["plan"], outcome.summary["taken"]
    for stage, steps in plan["steps"].items():
        assert steps["min"] <= taken["steps"][stage] <= steps["max"]
    path = outcome.folder / "trajectory.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    resumed = search("resume=true", "cluster=inline", f"output_dir={outcome.folder}", bare=True)
    assert resumed.status == 0, resumed.output
    assert resumed.trajectory == whole
    other = search(*words[:-1])
    assert other.status == 2
    assert "belongs to another run" in other.output


def test_judging_by_cost_is_written_and_judging_by_score_as_before(search: Search) -> None:
    """Each step takes the least rise for what goes, by the scores in its own line."""
    blocks = ("search=multipruner", "search.distribution=[1,0,0]", "search.target_ratio=0.4")
    by_score = search(*blocks)
    assert by_score.status == 0, by_score.output
    assert "search.judged_by" not in by_score.summary["identity"], "as of runs before the choice"
    assert not any("base_nll" in line for line in lines_of(by_score.trajectory))
    by_cost = search(*blocks, BY_COST, "output_dir=by_cost")
    assert by_cost.status == 0, by_cost.output
    for line in lines_of(by_cost.trajectory):
        worth = {}
        for each in line["candidates"]:
            change = each["nll"] - line["base_nll"]
            value = change / each["gain"] if change >= 0 else change * each["gain"]
            worth[each["kind"], each["layer"]] = value
        taken = line["removed"]
        assert min(worth, key=lambda each: worth[each]) == (taken["kind"], taken["layer"])


def test_a_target_in_time_is_reached_by_the_table(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    table = written(tmp_path / "latency.json", checkpoint_folder)
    outcome = search(
        *GREEDY, NO_RATIO, "search.target.latency=0.3", f"latency={table.name}", BY_COST
    )
    assert outcome.status == 0, outcome.output
    latencies, dense = LatencyTable.load(table), ModelShape.dense(4, 3, 48)
    shape = ModelShape.parse(outcome.summary["shape"])
    gone = 1 - latencies.nanoseconds(shape) / latencies.nanoseconds(dense)
    assert gone >= 0.3
    assert outcome.summary["costs"]["latency"]["ratio"] == pytest.approx(gone)
    assert "time of a batch, by the table" in outcome.output
    before = dense
    for line in lines_of(outcome.trajectory):
        after = ModelShape.parse(line["shape"])
        assert latencies.nanoseconds(after) < latencies.nanoseconds(before), "it saves no time"
        before = after


def test_a_width_that_is_not_faster_is_passed_over(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    """The table says that 32 of 48 channels take as long as all of them."""
    slow = {**MLP, 32: MLP[48]}
    table = written(tmp_path / "latency.json", checkpoint_folder, mlp_channels=slow)
    words = ("search.distribution=[0,1,0]", NO_RATIO, "search.target.latency=0.05")
    outcome = search("search=multipruner", *words, f"latency={table.name}")
    assert outcome.status == 0, outcome.output
    [step] = lines_of(outcome.trajectory)
    assert [each["mlp_channels"] for each in step["candidates"]] == [16] * 4
    steps = outcome.summary["plan"]["steps"]["mlp_channels"]
    assert steps["min"] == 1


def test_a_plan_counts_a_greedy_search_towards_a_cost(cli: Cli, arguments: list[str]) -> None:
    outcome = cli("plan", *arguments, *GREEDY, NO_RATIO, "search.target.flops=0.3")
    assert outcome.status == 0, outcome.output
    plan = outcome.read("plan.json")
    assert plan["targets"] == {"search.target.flops": 0.3}
    assert 0 < plan["evaluations"]["block"]["min"] <= plan["evaluations"]["block"]["max"]
    assert "30.0% of FLOPs" in " ".join(outcome.output.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*GREEDY, BY_COST, "search.selection=lazy"),
            "search.judged_by: score_per_cost, with search.selection=lazy, which leaves "
            "candidates out by their scores; use search.selection=exhaustive",
        ),
        (
            ("search=random", "search.distribution=[1,0,0]", BY_COST),
            "search.judged_by: score_per_cost, but a step of search.strategy=random has one "
            "candidate; it is for greedy",
        ),
        ((*GREEDY, "search.judged_by=cost"), "search.judged_by: 'cost'; one of score, score_per"),
        (
            ("search.distribution=[0,1,0]", NO_RATIO, "search.target.kv_cache=0.2"),
            "search.target.kv_cache: 0.2; no path reaches it: the mlp_channels stage runs out",
        ),
        (
            (*GREEDY, NO_RATIO, "search.target.latency=0.1"),
            "search.target.latency: given without a table; give latency=FILE",
        ),
    ],
)
def test_bad_input(search: Search, words: tuple[str, ...], message: str) -> None:
    outcome = search(*words)
    assert outcome.status == 2, outcome.output
    assert message in " ".join(outcome.output.split())
    assert not outcome.folder.exists(), "something was written"
