"""One committed step of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pruning.search.stages import StageName
from pruning.shape import ModelShape, Removal


@dataclass(frozen=True, slots=True)
class Step:
    """One committed removal.

    `nll` is the score of the shape after it, in nats per token. `candidates` are all that were
    scored, in order; a NaN or infinite score is kept as it came.
    """

    stage: StageName
    removal: Removal
    shape: ModelShape
    nll: float
    ratio: float
    candidates: tuple[tuple[Removal, float], ...]

    @property
    def runner_up(self) -> tuple[Removal, float] | None:
        """The best candidate but for the one removed, and its score in nats per token; equal
        scores: the first in order. None where no other has a finite score.
        """
        rest = [
            (candidate, nll)
            for candidate, nll in self.candidates
            if candidate != self.removal and math.isfinite(nll)
        ]
        return min(rest, key=lambda pair: pair[1], default=None)

    @property
    def margin(self) -> float | None:
        """The score of the runner-up minus the best, in nats per token; None without one."""
        return None if self.runner_up is None else self.runner_up[1] - self.nll

    @property
    def excluded(self) -> tuple[Removal, ...]:
        """Candidates that were out because their score is not finite."""
        return tuple(removal for removal, nll in self.candidates if not math.isfinite(nll))
