"""Lazy selection: the greedy search with most candidates of most steps left out.

A candidate's change, its score minus that of the shape before the step, moves little from one step
to the next. So candidates are scored in the order of their last known change, until the next one is
too far behind the best new one. Changes do move, most of all close to what was removed: this can
miss the best candidate (docs/guide/prune.md, "Fewer candidates").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pruning.costs.accounting import Accounting
from pruning.scoring.score import BatchScore, ShapeScore
from pruning.search.greedy import GreedySearch
from pruning.search.plan import Range, SearchPlan
from pruning.search.selection import Ask
from pruning.search.settings import LazySettings, SearchSettings
from pruning.search.step import Step
from pruning.shape import Removal


@dataclass(frozen=True, slots=True)
class Lazy:
    """Candidates that have no known change, then the others in waves, the least change first, until
    the next one's exceeds the best new change by more than the tolerance.

    Args:
        candidates: in the order that breaks ties.
        changes: last known change of candidates, nats per token, all finite.
        base_nll: score of the shape before the step; None: it is asked for with the first wave.
    """

    candidates: tuple[Removal, ...]
    num_batches: int
    changes: Mapping[Removal, float]
    base_nll: float | None
    settings: LazySettings

    def next(self, scores: Mapping[Ask, BatchScore]) -> tuple[Ask, ...]:
        """The wave that is not scored yet, see `Selection`."""
        batches = range(self.num_batches)
        nlls = {
            each: ShapeScore.of(scores[each, batch] for batch in batches).nll
            for each in (None, *self.candidates)
            if all((each, batch) in scores for batch in batches)
        }
        wave = self.wave(nlls)
        return tuple(
            (each, batch) for batch in batches for each in wave if (each, batch) not in scores
        )

    def wave(self, nlls: Mapping[Removal | None, float]) -> tuple[Removal | None, ...]:
        """What to score next; empty when the step is decided.

        Args:
            nlls: of all that was scored in this step so far, nats per token.
        """
        best = math.inf
        for wave in self._waves():
            known = [each for each in wave if each is not None and each in self.changes]
            if known and self.changes[known[0]] > best + self.settings.tolerance:
                break
            missing = tuple(each for each in wave if each not in nlls)
            if missing:
                return missing
            base = nlls[None] if self.base_nll is None else self.base_nll
            fresh = [nlls[each] - base for each in wave if each is not None]
            best = min([best, *filter(math.isfinite, fresh)])
        return ()

    def _waves(self) -> Iterator[tuple[Removal | None, ...]]:
        base = () if self.base_nll is not None else (None,)
        unknown = tuple(each for each in self.candidates if each not in self.changes)
        if base or unknown:
            yield (*base, *unknown)
        known = [each for each in self.candidates if each in self.changes]
        known.sort(key=lambda each: self.changes[each])
        for start in range(0, len(known), self.settings.wave_size):
            yield tuple(known[start : start + self.settings.wave_size])


class LazySearch(GreedySearch):
    """A greedy search that leaves candidates out. What it knows of earlier steps is in `steps`, so
    that a search that is replayed asks for the same.

    Args:
        settings: with those of the lazy selection.
    """

    def __init__(self, accounting: Accounting, settings: SearchSettings) -> None:
        super().__init__(accounting, settings)
        assert settings.lazy is not None
        self._lazy = settings.lazy

    def selection(self, num_batches: int) -> Lazy:
        changes, base_nll = self._changes()
        candidates = self.propose()
        known = {each: changes[each] for each in candidates if each in changes}
        return Lazy(candidates, num_batches, known, base_nll, self._lazy)

    def decides(self, scores: Mapping[Removal | None, float]) -> bool:
        """Whether these are the scores that the selection asks for, wave by wave."""
        selection, found = self.selection(1), dict[Removal | None, float]()
        while wave := selection.wave(found):
            if not scores.keys() >= set(wave):
                return False
            found |= {each: scores[each] for each in wave}
        return found.keys() == scores.keys()

    def observe(self, scores: Mapping[Removal | None, float]) -> Step:
        """Commits the best of the candidates that were scored, see `GreedySearch.observe`."""
        selection = self.selection(1)
        step = replace(
            super().observe(scores),
            unscored=tuple(
                (each, selection.changes[each])
                for each in selection.candidates
                if each not in scores
            ),
        )
        self.steps[-1] = step
        return step

    def expected_evaluations(self) -> int:
        """Evaluations still to come, estimated: as `GreedySearch` does, by the share of candidates
        that were scored in the steps so far that left any out.
        """
        lazy = [step for step in self.steps if step.unscored]
        scored = sum(len(step.candidates) for step in lazy)
        left_out = sum(len(step.unscored or ()) for step in lazy)
        share = scored / (scored + left_out) if lazy else 1.0
        return math.ceil(super().expected_evaluations() * share)

    def _changes(self) -> tuple[dict[Removal, float], float | None]:
        """The last known change of candidates, none where all are to be scored; and the score of
        the current shape on the text of the stage, None where it has none.

        A change that is not finite is not known.
        """
        stage = self.stage
        assert stage is not None
        steps = [step for step in self.steps if step.stage == stage.name]
        if not steps:
            return {}, None
        changes: dict[Removal, float] = {}
        since = len(steps) // self._lazy.rescore_every * self._lazy.rescore_every
        for number in range(since, len(steps)):
            step = steps[number]
            base = steps[number - 1].nll if step.base_nll is None else step.base_nll
            changes |= {candidate: nll - base for candidate, nll in step.candidates}
            changes = {
                candidate: change
                for candidate, change in changes.items()
                if math.isfinite(change)
                and abs(candidate.layer - step.removal.layer) > self._lazy.near_layers
            }
        return changes, steps[-1].nll


def at_most(plan: SearchPlan) -> SearchPlan:
    """The plan of a search that scores every candidate, for one that leaves some out: each step
    scores one or more of them.
    """
    stages = (
        replace(stage, evaluations=Range(stage.steps.min, stage.evaluations.max))
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages), at_most=True)
