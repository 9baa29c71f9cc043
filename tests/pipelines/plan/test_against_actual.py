"""The plan of a search, beside what it took."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.plan import against_actual as forecast
from pipelines.plan.against_actual import plan_vs_actual_row
from pipelines.plan.estimate import measured_tflops
from pruning.search.stages import StageName
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search
from tests.pipelines.plan.test_plan import planning, read
from tests.tiny_search import DEAD_END

__all__ = ["planning"]

STAGES: tuple[StageName, ...] = ("block", "mlp_channels", "attention_heads")


def counted(outcome: Outcome) -> dict[str, dict[str, int]]:
    lines = [json.loads(line) for line in outcome.trajectory]
    return {
        "steps": {stage: sum(line["stage"] == stage for line in lines) for stage in STAGES},
        "evaluations": {
            stage: sum(len(line["candidates"]) for line in lines if line["stage"] == stage)
            for stage in STAGES
        },
    }


def test_a_search_says_what_was_planned_and_what_it_took(ended: Outcome, search: Search) -> None:
    outcome = ended
    plan, taken = outcome.summary["plan"], outcome.summary["taken"]
    assert {name: taken[name] for name in ("steps", "evaluations")} == counted(outcome)
    for name in ("steps", "evaluations"):
        for stage in STAGES:
            assert plan[name][stage]["min"] <= taken[name][stage] <= plan[name][stage]["max"]
    assert taken["flops"] == pytest.approx(plan["flops"], rel=0.3)
    assert taken["tflops_per_evaluator"] == measured_tflops(outcome.folder)
    line = next(
        line for line in outcome.output.splitlines() if "mlp channels: steps, candidates" in line
    )
    low, high = plan["steps"]["mlp_channels"].values()
    assert f"took {taken['steps']['mlp_channels']}, {taken['evaluations']['mlp_channels']}" in line
    assert f"planned {low} to {high}, " in line or f"planned {low}, " in line
    again = search()
    assert again.summary["plan"] == plan
    assert again.summary["taken"] == taken | {"tflops_per_evaluator": None}, (
        "its scores came from the store, so its time says nothing"
    )


def test_the_ranges_are_those_of_the_plan(
    search: Search, arguments: list[str], planning: Any
) -> None:
    searched = search("search=shortgpt", "search.distribution=[1,0,0]")
    planned = read(planning(*arguments, "search=shortgpt", "search.distribution=[1,0,0]"))
    for name in ("steps", "evaluations", "flops"):
        assert searched.summary["plan"][name] == planned[name]
    assert planned["steps"]["block"] == {"min": 4, "max": 4}
    assert "took 4, 4" in searched.output
    assert "mlp channels: steps" not in searched.output


def test_a_target_that_is_not_reached(search: Search) -> None:
    outcome = search(*DEAD_END)
    assert outcome.status == 2
    taken = counted(outcome)
    assert taken["steps"]["mlp_channels"] > 0
    words = ", ".join(str(taken[name]["mlp_channels"]) for name in ("steps", "evaluations"))
    assert f"took {words}" in outcome.output


def test_statistics_never_make_a_search_fail(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(forecast, "search_plan", broken)
    outcome = search()
    assert outcome.status == 0, outcome.output
    assert outcome.summary["plan"] is outcome.summary["taken"] is None
    assert "the plan cannot be set beside what the search took: division by zero" in outcome.output


def test_words_for_people() -> None:
    plan = {
        "steps": {"block": {"min": 5, "max": 5}},
        "evaluations": {"block": {"min": 310, "max": 1595}},
    }
    taken = {
        "steps": dict.fromkeys(STAGES, 0) | {"block": 5},
        "evaluations": dict.fromkeys(STAGES, 0) | {"block": 1310},
    }
    summary = {"plan": plan, "taken": taken}
    assert plan_vs_actual_row(summary, "block") == ("took 5, 1,310", "planned 5, 310 to 1,595")
    assert plan_vs_actual_row(summary, "mlp_channels") is None
    assert plan_vs_actual_row({"plan": None, "taken": None}, "block") is None
