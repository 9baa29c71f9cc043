"""The least and the most that a greedy search towards other costs can take, before it scores.

Layers may differ in what they cost, and groups of one block too, so that no way is followed: the
removals that bring most of the goal give the fewest steps, those that bring least the most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pruning.costs.accounting import Accounting
from pruning.search.goal import Goal
from pruning.search.greedy import candidates_of, is_allowed
from pruning.search.plan import Range, SearchPlan, StagePlan
from pruning.search.settings import SearchSettings
from pruning.search.stages import Stage, make_stages


@dataclass(frozen=True, slots=True)
class _Gain:
    """What one removal brings of the goal, and of the ratio of parameters, in the dense model."""

    goal: float
    ratio: float


def bounded_search(accounting: Accounting, settings: SearchSettings) -> SearchPlan:
    """Every stage between its bounds. A dead end that cannot be ruled out counts as one.

    Raises:
        InputError: the settings do not fit the model.
    """
    goal = Goal.of(accounting, settings)
    plans: list[StagePlan] = []
    begins, lost, ratios, dead_ends = (0.0, 0.0), 0, (0.0, 0.0), False
    for stage in make_stages(accounting, settings):
        layers = _gains(goal, stage, settings)
        gains = sorted((gain for layer in layers for gain in layer), key=lambda each: each.goal)
        fewest = _steps(gains[::-1], stage.target_ratio - begins[1])
        if fewest is None:
            return SearchPlan(tuple(plans), True, stage.name)
        surely = sorted(sum(gain.goal for gain in layer) for layer in layers)
        alone = begins[0] + sum(surely[: max(0, len(surely) - lost)]) if _is_one(goal) else 0.0
        most = _steps(gains, stage.target_ratio - begins[0]) if _is_one(goal) else None
        if begins[0] >= stage.target_ratio:
            most = 0
        elif max(alone, _together(goal, stage, settings)) < stage.target_ratio:
            dead_ends, most = True, None
        steps = Range(fewest, len(gains) if most is None else most)
        ends = [sum(gain.ratio for gain in gains[: steps.max])]
        ends.append(sum(gain.ratio for gain in gains[::-1][: steps.min]))
        ratios = (ratios[0] + min(ends), ratios[1] + max(ends))
        evaluations = _evaluations(layers, steps, lost, is_exact=_is_one(goal))
        plans.append(StagePlan(stage.name, stage.target_ratio, steps, evaluations, ratios))
        if steps.max:
            beyond = stage.target_ratio + max((gain.goal for gain in gains), default=0.0)
            begins = max(begins[0], stage.target_ratio), max(begins[1], beyond)
        lost += steps.max if stage.name == "block" else 0
    return SearchPlan(tuple(plans), dead_ends, None)


def _is_one(goal: Goal) -> bool:
    """Whether gains add up: of several limits one may be kept already."""
    return len(goal.limits) == 1


def _gains(goal: Goal, stage: Stage, settings: SearchSettings) -> list[list[_Gain]]:
    """Of each block that the stage may touch, what its removals bring: one of a whole block; of
    widths the groups up to the last, with those that bring nothing joined to the next.
    """
    dense, found = goal.accounting.dense, []
    for removal in candidates_of(stage, dense):
        if not is_allowed(removal, len(dense.layers), settings.shape_constraint):
            continue
        smaller = range(removal.remaining, 0, -stage.group) if stage.group else (0,)
        reached = [(0.0, 0.0)]
        for size in smaller:
            shape = dense.without(replace(removal, remaining=size))
            if (after := goal.reached(shape)) > reached[-1][0]:
                reached.append((after, goal.accounting.ratio(shape)))
        pairs = itertools.pairwise(reached)
        found.append([_Gain(b[0] - a[0], b[1] - a[1]) for a, b in pairs])
    return [gains for gains in found if gains]


def _together(goal: Goal, stage: Stage, settings: SearchSettings) -> float:
    """What is reached with all that the stage may take gone, and nothing else."""
    shape = dense = goal.accounting.dense
    for removal in candidates_of(stage, dense):
        if is_allowed(removal, len(dense.layers), settings.shape_constraint):
            last = range(removal.remaining, 0, -stage.group)[-1] if stage.group else 0
            shape = shape.without(replace(removal, remaining=last))
    return goal.reached(shape)


def _steps(gains: Sequence[_Gain], needed: float) -> int | None:
    """How many in this order come to what is needed; None: all of them do not."""
    sums = itertools.accumulate((gain.goal for gain in gains), initial=0.0)
    return next((count for count, reached in enumerate(sums) if reached >= needed - 1e-9), None)


def _evaluations(
    layers: Sequence[Sequence[_Gain]], steps: Range, lost: int, *, is_exact: bool
) -> Range:
    """Candidates of so many steps: a block is one until its last removal.

    Args:
        lost: blocks that earlier stages may have removed.
        is_exact: every removal that remains is a candidate.
    """
    total, longest = sum(map(len, layers)), max(map(len, layers), default=1)
    most = sum(min(len(layers), total - step) for step in range(steps.max))
    left = len(layers) - lost
    fewest = sum(max(1, left - step // longest) if is_exact else 1 for step in range(steps.min))
    return Range(fewest, most)
