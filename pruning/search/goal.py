"""What a greedy search goes towards, and what a candidate takes it there: one cost or several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pruning.costs.accounting import Accounting
from pruning.search.allocation import Limit
from pruning.search.settings import SearchSettings
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Goal:
    """The targets of a search, and how much of them a shape has reached.

    Of parameters alone, as published, that is the ratio of parameters removed. Of other costs, or
    of several, it is the share of the way to each limit, at most 1, and the mean of them: 1 where
    every limit is kept.

    Args:
        ratio: of parameters that is to go.
        limits: what a shape may cost, each with what the dense model does; empty of parameters
            alone.
    """

    accounting: Accounting
    ratio: float
    limits: tuple[tuple[Limit, float], ...] = ()

    @classmethod
    def of(cls, accounting: Accounting, settings: SearchSettings) -> Self:
        """That of a search."""
        limits = limits_of(accounting, settings) if settings.targets else []
        return cls(
            accounting,
            settings.target_ratio,
            tuple((limit, limit.cost(accounting.dense)) for limit in limits),
        )

    @property
    def whole(self) -> float:
        """What `reached` is at least where all of it is."""
        return 1.0 if self.limits else self.ratio

    @property
    def words(self) -> str:
        """As the user gave it."""
        if not self.limits:
            return f"search.target_ratio: {self.ratio:g}"
        return ", ".join(f"{each.name}: {each.as_given(each.most)}" for each, _ in self.limits)

    @property
    def names(self) -> str:
        """Of the options that give it."""
        return ", ".join(limit.name for limit, _ in self.limits) or "search.target_ratio"

    def reached(self, shape: ModelShape) -> float:
        """How much of it a shape has reached."""
        if not self.limits:
            return self.accounting.ratio(shape)
        shares = []
        for limit, dense in self.limits:
            cost = limit.cost(shape)
            share = (dense - cost) / (dense - limit.most)
            shares.append(1.0 if limit.is_kept(cost) else min(1.0, share))
        return math.fsum(shares) / len(shares)


def limits_of(accounting: Accounting, settings: SearchSettings) -> list[Limit]:
    """What the shape that is looked for may cost."""
    ratio = settings.target_ratio
    found = [Limit.of_parameters(accounting, ratio)] if ratio else []
    return found + [Limit.of_target(target) for target in settings.targets]


def worth(change: float, gain: float) -> float:
    """By what candidates are compared where a score is set against a cost: the less, the better.

    What the score rises by, for each unit of the goal. A removal that improves the score is the
    better the more it gains, so that none is taken where another is better in both.

    Args:
        change: score with the candidate removed minus that of the shape before.
        gain: of the goal, above 0.
    """
    return change / gain if change >= 0 else change * gain


def tied_share(change: float, gain: float, other_gain: float) -> float:
    """The part of the best candidate's change at which another candidate would tie with it.

    Args:
        change: of the best candidate.
        gain: of the best candidate.
        other_gain: of the other one.
    """
    return other_gain / gain if change >= 0 else gain / other_gain
