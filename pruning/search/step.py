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

    Args:
        base_nll: score of the shape before it, where the selection asked for that.
        unscored: of a selection that leaves candidates out, those that it left out of this step,
            in order, each with its last known change: score minus that of the shape before.
    """

    stage: StageName
    removal: Removal
    shape: ModelShape
    nll: float
    ratio: float
    candidates: tuple[tuple[Removal, float], ...]
    base_nll: float | None = None
    unscored: tuple[tuple[Removal, float], ...] | None = None

    @property
    def runner_up(self) -> tuple[Removal, float] | None:
        """The best scored candidate but for the one removed, and its score in nats per token; equal
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
