"""FLOPs of a step and of a whole search, by hand.

At a context of 10 tokens, one token costs a dense layer of the model 4 KV heads x (20 + 20) + 6 MLP
channels x 20 = 280, and the head 100.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.search.plan import Range, SearchPlan, StagePlan, planned_flops, step_flops
from pruning.shape import ModelShape, Removal
from tests.round_sizes import round_sizes

BASE = ModelShape.parse("2x6 4x0 0x0 4x6")
"""Its layers cost 200, 160, 0 and 280."""
CANDIDATES = [Removal("mlp", 0, 0), Removal("attention", 1, 0), Removal("mlp", 3, 0)]
FROM_LAYERS = (640 + 100) + (440 + 100) + (280 + 100)
"""A candidate from its layer up, each of the three."""


@pytest.mark.parametrize(
    ("removals", "num_prefixes", "expected"),
    [
        (CANDIDATES, 1, 30 * (640 + FROM_LAYERS)),
        (CANDIDATES, 2, 30 * (2 * 640 + FROM_LAYERS)),
        (CANDIDATES[:2], 1, 30 * (640 + 740 + 540)),
        (CANDIDATES[1:2], 2, 30 * (640 - 160 + 100)),
        ([], 1, 30 * 640),
    ],
)
def test_a_step_costs_the_base_and_each_candidate_from_its_layer_up(
    removals: list[Removal], num_prefixes: int, expected: float
) -> None:
    """One that is alone runs whole, and the base does not."""
    found = step_flops(
        round_sizes(),
        removals,
        BASE,
        num_sequences=3,
        sequence_length=10,
        num_prefixes=num_prefixes,
    )
    assert found == expected


def test_the_base_runs_once_unless_more_is_said() -> None:
    found = step_flops(round_sizes(), CANDIDATES, BASE, num_sequences=3, sequence_length=10)
    assert found == 30 * (640 + FROM_LAYERS)


PLAN = SearchPlan(
    (
        StagePlan("block", 0.2, Range(2, 4), Range(20, 30), (0.1, 0.3)),
        StagePlan("mlp_channels", 0.4, Range(3, 3), Range(10, 14), (0.4, 0.4)),
        StagePlan("attention_heads", 0.5, Range(4, 6), Range(4, 6), (0.4, 0.6)),
    ),
    dead_ends=False,
    impossible=None,
)
TOKENS = {"block": 100, "width": 10}
PREFIXES = {"block": 2.0, "width": 3.0}


def planned(accounting: Accounting, plan: SearchPlan) -> float | None:
    return planned_flops(accounting, plan, tokens=TOKENS, sequence_length=10, num_prefixes=PREFIXES)


@pytest.mark.parametrize(("at_most", "evaluations"), [(False, (25, 12, 5)), (True, (30, 14, 6))])
def test_a_search_costs_each_stage_with_half_of_it_gone(
    evaluations: tuple[int, int, int], *, at_most: bool
) -> None:
    """Layers of the dense model are 1,120; of these 90 % are there in the middle of the first
    stage, 70 % of the second, 55 % of the third. A candidate runs through 5/8 of them; through all
    in the third stage, where each step has one. A base runs twice or three times in a step.
    """
    first, second, third = evaluations
    expected = (
        100 * (3 * 2 * 1008 + first * (1008 * 5 / 8 + 100))
        + 10 * (3 * 3 * 784 + second * (784 * 5 / 8 + 100))
        + 10 * third * (616 + 100)
    )
    found = planned(round_sizes(), replace(PLAN, at_most=at_most))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accounting", [round_sizes(products=None), round_sizes(head_weights=None)])
def test_they_are_not_known_of_matrices_that_are_not_understood(accounting: Accounting) -> None:
    """Those of one attention, or those outside of the blocks."""
    assert planned(accounting, PLAN) is None
    for removals in (CANDIDATES, CANDIDATES[:1]):
        found = step_flops(accounting, removals, BASE, num_sequences=3, sequence_length=10)
        assert found is None
