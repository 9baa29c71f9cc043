"""One committed step of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruning.search.goal import tied_share, worth
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
        gains: what each candidate brings of the goal, where the search judges by score per cost;
            `base_nll` is there then, too.
    """

    stage: StageName
    removal: Removal
    shape: ModelShape
    nll: float
    ratio: float
    candidates: tuple[tuple[Removal, float], ...]
    base_nll: float | None = None
    unscored: tuple[tuple[Removal, float], ...] | None = None
    gains: tuple[float, ...] | None = None

    @property
    def runner_up(self) -> tuple[Removal, float] | None:
        """The best candidate but for the one removed, and its score in nats per token; equals: the
        first in order. None where no other has a finite score.
        """
        places = [
            place
            for place, (candidate, nll) in enumerate(self.candidates)
            if candidate != self.removal and math.isfinite(nll)
        ]
        rest = [self.candidates[place] for place in places]
        gains = None if self.gains is None else [self.gains[place] for place in places]
        best = best_of(rest, self.base_nll, gains)
        return next((each for each in rest if each[0] == best), None)

    @property
    def margin(self) -> float | None:
        """The score of the runner-up minus the one at which it would have been equal to the best,
        which is the best one's where scores decide, in nats per token; None without one.
        """
        return None if self.runner_up is None else self.margin_of(self.runner_up[0])

    def margin_of(self, candidate: Removal) -> float:
        """What a candidate lost by, as `margin` of the runner-up."""
        nll, share = dict(self.candidates)[candidate], self.tied_share(candidate)
        if share is None or self.base_nll is None or candidate == self.removal:
            return nll - self.nll
        return (nll - self.base_nll) - share * (self.nll - self.base_nll)

    def tied_share(self, candidate: Removal) -> float | None:
        """The part of the change of the one removed at which a candidate would have been equal to
        it; None where scores decide, and costs do not.
        """
        if self.gains is None or self.base_nll is None:
            return None
        own, other = self.gain_of(self.removal), self.gain_of(candidate)
        return tied_share(self.nll - self.base_nll, own, other)

    def gain_of(self, candidate: Removal) -> float:
        """What it brings of the goal, in a step that is judged by score per cost."""
        assert self.gains is not None
        places = {each: place for place, (each, _) in enumerate(self.candidates)}
        return self.gains[places[candidate]]

    @property
    def excluded(self) -> tuple[Removal, ...]:
        """Candidates that were out because their score is not finite."""
        return tuple(removal for removal, nll in self.candidates if not math.isfinite(nll))


def best_of(
    candidates: Sequence[tuple[Removal, float]],
    base_nll: float | None,
    gains: Sequence[float] | None,
) -> Removal | None:
    """The best of those whose score is finite; equals: the first. None where there is none.

    Args:
        candidates: with their scores, nats per token.
        base_nll: score of the shape before the step; judged by score per cost.
        gains: what each brings of the goal; None: scores decide.
    """
    finite = [place for place, (_, nll) in enumerate(candidates) if math.isfinite(nll)]
    if gains is None:
        best = min(finite, key=lambda place: candidates[place][1], default=None)
    else:
        assert base_nll is not None
        base = base_nll
        best = min(
            finite,
            key=lambda place: worth(candidates[place][1] - base, gains[place]),
            default=None,
        )
    return None if best is None else candidates[best][0]
