"""Near-ties of a trajectory, counted by hand."""

from __future__ import annotations

from typing import Any

from pipelines.runs.near_ties import counted
from tests.pipelines.command import Outcome


def line(nll: float, *others: tuple[float | None, float | None]) -> dict[str, Any]:
    removed = {"kind": "attention", "layer": 0, "kv_heads": 0}
    return {
        "nll": nll,
        "removed": removed,
        "candidates": [
            removed | {"nll": nll, "stderr": 0.0},
            *(
                {"kind": "mlp", "layer": layer, "mlp_channels": 0, "nll": other, "stderr": stderr}
                for layer, (other, stderr) in enumerate(others)
            ),
        ],
    }


def test_any_candidate_may_be_the_near_one() -> None:
    """The second best lost by ten standard errors, a worse one by one and a half."""
    clear = line(2.0, (2.1, 0.01), (2.3, 0.1))
    assert counted([clear]) == {"known": 1, "near": 0}
    assert counted([clear, line(2.0, (2.1, 0.01), (2.3, 0.2))]) == {"known": 2, "near": 1}


def test_what_a_candidate_lost_by_may_be_less_than_its_score_says() -> None:
    """Of steps by cost: it is far behind by its score, and near for what it saves."""
    step = line(2.0, (3.0, 0.1))
    assert counted([step]) == {"known": 1, "near": 0}
    step["candidates"][1]["margin"] = 0.05
    assert counted([step]) == {"known": 1, "near": 1}


def test_steps_without_a_choice_are_not_counted() -> None:
    """One candidate, others without a number, or without a standard error."""
    assert counted([line(2.0), line(2.0, (None, None)), line(2.0, (2.1, None))]) == {
        "known": 0,
        "near": 0,
    }


def test_a_search_says_how_many_of_its_steps_were_near_ties(undisturbed: Outcome) -> None:
    found = undisturbed.summary["near_ties"]
    assert 0 < found["known"] <= len(undisturbed.summary["steps"])
    said = f"steps that another text may well decide otherwise {found['near']} of {found['known']}"
    assert said in " ".join(undisturbed.output.replace("│", " ").split())
