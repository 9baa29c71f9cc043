"""What a greedy search goes towards, and what a candidate takes it there: one cost or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        limits: what else a shape may cost; empty of parameters alone.
    """

    accounting: Accounting
    ratio: float
    limits: tuple[Limit, ...] = ()

    @classmethod
    def of(cls, accounting: Accounting, settings: SearchSettings) -> Self:
        """That of a search."""
        limits = tuple(limits_of(accounting, settings)) if settings.targets else ()
        return cls(accounting, settings.target_ratio, limits)

    @property
    def whole(self) -> float:
        """What `reached` is at least where all of it is."""
        return 1.0 if self.limits else self.ratio

    @property
    def words(self) -> str:
        """As the user gave it."""
        if not self.limits:
            return f"search.target_ratio: {self.ratio:g}"
        return ", ".join(f"{limit.name}: {limit.as_given(limit.most)}" for limit in self.limits)

    def reached(self, shape: ModelShape) -> float:
        """How much of it a shape has reached."""
        return self.with_saved(self.saved(shape))

    def saved(self, shape: ModelShape) -> tuple[float, ...]:
        """What a shape costs less than the dense model: parameters, then by each limit."""
        accounting = self.accounting
        parameters = accounting.num_dense_parameters - accounting.num_parameters(shape)
        dense = accounting.dense
        return (parameters, *(limit.cost(dense) - limit.cost(shape) for limit in self.limits))

    def with_saved(self, saved: Sequence[float]) -> float:
        """How much of it is reached with that much saved, as `saved` gives it."""
        if not self.limits:
            return saved[0] / self.accounting.num_dense_parameters
        shares = []
        for limit, less in zip(self.limits, saved[1:], strict=True):
            dense = limit.cost(self.accounting.dense)
            kept = limit.is_kept(dense - less)
            shares.append(1.0 if kept else min(1.0, less / (dense - limit.most)))
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
