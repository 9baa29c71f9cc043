"""What is scored to decide a step: which candidates, on which batches of calibration text.

A selection is asked again with all scores so far until it asks for no more, so that it can score a
few candidates first, or all on a little text, and leave the rest out. What decides more than which
scores are computed belongs to the identity of the search, as an option of its strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pruning.scoring.score import BatchScore
from pruning.shape import Removal

Ask = tuple[Removal | None, int]
"""A candidate, or None for the shape as it is; and a batch of the calibration set of its stage, by
its number.
"""


class Selection(Protocol):
    """Decides what to score in one step, from the scores alone: it holds no model and no clock,
    and changes nothing when asked.
    """

    def next(self, scores: Mapping[Ask, BatchScore]) -> tuple[Ask, ...]:
        """What is still wanted, none of it in `scores`; empty when the step is decided.

        Args:
            scores: of all that was asked for in this step so far.
        """


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Every candidate on every batch, all at once: the search as published.

    Args:
        candidates: None among them is the shape as it is.
    """

    candidates: tuple[Removal | None, ...]
    num_batches: int

    def next(self, scores: Mapping[Ask, BatchScore]) -> tuple[Ask, ...]:
        return tuple(
            (candidate, batch)
            for batch in range(self.num_batches)
            for candidate in self.candidates
            if (candidate, batch) not in scores
        )
