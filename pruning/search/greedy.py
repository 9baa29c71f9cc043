"""The three-stage greedy search (docs/concepts/method.md, "The three stages"), and searches whose
path is known before. They propose and observe; they never evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pruning.costs.accounting import Accounting
from pruning.errors import ScoringError, TargetNotReached
from pruning.search.goal import Goal
from pruning.search.selection import Exhaustive, Selection
from pruning.search.settings import SearchSettings, ShapeConstraint
from pruning.search.stages import Stage, make_stages
from pruning.search.step import Step, best_of
from pruning.shape import Kind, ModelShape, Removal


class GreedySearch:
    """Proposes the candidates of the next step and commits the one that scored best.

    It holds no model and no clock: replaying the same scores rebuilds the same search.

    Example:
        >>> while not search.done:                                       # doctest: +SKIP
        ...     candidates = search.propose()
        ...     step = search.observe({candidate: score(candidate) for candidate in candidates})
    """

    advice = (
        "Lower the target, give this stage a smaller share in search.distribution, or use "
        "smaller groups"
    )
    """What to do when candidates run out."""

    def __init__(self, accounting: Accounting, settings: SearchSettings) -> None:
        self.accounting = accounting
        self.settings = settings
        self.goal = Goal.of(accounting, settings)
        self.stages = make_stages(accounting, settings)
        self.shape = accounting.dense
        self.steps: list[Step] = []

    @property
    def ratio(self) -> float:
        return self.accounting.ratio(self.shape)

    @property
    def stage(self) -> Stage | None:
        """The first stage whose target is not met; None when all are."""
        reached = self.goal.reached(self.shape)
        return next((stage for stage in self.stages if reached < stage.target_ratio), None)

    @property
    def done(self) -> bool:
        return self.stage is None

    def propose(self) -> tuple[Removal, ...]:
        """Every candidate of the next step, in the order that breaks ties: attention before MLP,
        then the lower layer.

        Raises:
            TargetNotReached: there is none, though the stage's target is not met.
        """
        stage = self.stage
        if stage is None:
            return ()
        candidates = self._candidates(stage, self.shape)
        if not candidates:
            raise TargetNotReached(
                f"{self.goal.names}: stage {stage.name!r} has no candidate left at "
                f"{'a share of the way of' if self.goal.limits else 'ratio'} "
                f"{self.goal.reached(self.shape):.4f}, below its target of "
                f"{stage.target_ratio:.4f} (after {len(self.steps)} steps). {self.advice}. "
                "Everything up to here is kept"
            )
        return candidates

    def foreseen(self) -> tuple[Removal, ...]:
        """Nothing: the scores of each step decide what goes."""
        return ()

    def selection(self, num_batches: int) -> Selection:
        """What to score before the next step.

        Args:
            num_batches: of the calibration set of the stage.

        Raises:
            TargetNotReached: there is no candidate, though the stage's target is not met.
        """
        return Exhaustive(self._asked(), num_batches)

    def decides(self, scores: Mapping[Removal | None, float]) -> bool:
        """Whether these are the scores that the selection asks for: all, where it is exhaustive."""
        return set(scores) == set(self._asked())

    def observe(self, scores: Mapping[Removal | None, float]) -> Step:
        """Commits the candidate with the lowest NLL, or the lowest rise of it for what it brings
        of the goal, where that is what the search judges by; equals: the first proposed.

        Scores that are not finite are out.

        Args:
            scores: NLL of each candidate, of None that of the shape as it is, where the selection
                asks for it.

        Raises:
            ScoringError: no score is finite.
            KeyError: the scores do not decide the step: a candidate has none, or was not proposed.
        """
        stage = self.stage
        assert stage is not None
        if not self.decides(scores):
            raise KeyError(f"step {len(self.steps) + 1}: scores of {len(scores)} candidates")
        scored = tuple(
            (candidate, scores[candidate]) for candidate in self.propose() if candidate in scores
        )
        gains = None
        if self._per_cost:
            before = self.goal.reached(self.shape)
            gains = tuple(
                self.goal.reached(self.shape.without(candidate)) - before for candidate, _ in scored
            )
        base_nll = scores.get(None)
        comparable = gains is None or math.isfinite(scores[None])
        best = best_of(scored, base_nll, gains) if comparable else None
        if best is None:
            failed = (
                f"the NLL of all {len(scored)} candidates is NaN or infinite, the first is "
                f"{scored[0][1]} for {scored[0][0]}"
                if comparable
                else f"the NLL of the shape before it is {base_nll}"
            )
            raise ScoringError(
                f"step {len(self.steps) + 1} ({stage.name}): {failed}. Weights or dtype overflow: "
                "try model.dtype=float32, and check the dense perplexity"
            )
        self.shape = self.shape.without(best)
        step = Step(
            stage.name,
            best,
            self.shape,
            scores[best],
            self.ratio,
            scored,
            base_nll=base_nll,
            gains=gains,
        )
        self.steps.append(step)
        return step

    def expected_evaluations(self) -> int:
        """Evaluations still to come, estimated: each step removes what the mean candidate would,
        and candidates stay as many as now.
        """
        total, shape, ratio = 0, self.shape, self.goal.reached(self.shape)
        for stage in self.stages:
            candidates = self._candidates(stage, shape)
            if ratio >= stage.target_ratio or not candidates:
                continue
            mean = math.fsum(
                self.goal.reached(shape.without(candidate)) for candidate in candidates
            ) / len(candidates) - self.goal.reached(shape)
            steps = math.ceil((stage.target_ratio - ratio) / mean)
            total += steps * len(candidates)
            ratio += steps * mean
        return total

    def _candidates(self, stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
        allowed = (
            removal
            for removal in candidates_of(stage, shape)
            if is_allowed(removal, len(shape.layers), self.settings.shape_constraint)
        )
        if not self.goal.limits:
            return tuple(allowed)
        before = self.goal.reached(shape)
        found = (self._bringing(stage, shape, removal, before) for removal in allowed)
        return tuple(removal for removal in found if removal is not None)

    def _bringing(
        self, stage: Stage, shape: ModelShape, removal: Removal, before: float
    ) -> Removal | None:
        """The removal, or the next smaller size of that block that brings something of the goal;
        None: there is none. A narrower block need not be faster.
        """
        smaller = range(removal.remaining, 0, -stage.group) if stage.group else (0,)
        sizes = (replace(removal, remaining=size) for size in smaller)
        reached = ((each, self.goal.reached(shape.without(each))) for each in sizes)
        return next((each for each, after in reached if after > before), None)

    @property
    def _per_cost(self) -> bool:
        return self.settings.judged_by == "score_per_cost"

    def _asked(self) -> tuple[Removal | None, ...]:
        """What a step that leaves nothing out scores: changes need the shape before it, too."""
        return (None, *self.propose()) if self._per_cost else self.propose()


def is_allowed(removal: Removal, num_layers: int, constraint: ShapeConstraint) -> bool:
    """Every runtime wants attention in the first layer and an MLP in the last
    (docs/concepts/formats.md, "DeciLM folder" and "GGUF").
    """
    kept = {("attention", 0), ("mlp", num_layers - 1)} if constraint == "deployable" else set()
    return (removal.kind, removal.layer) not in kept


def candidates_of(stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
    """What a stage may remove from a shape, in the order that breaks ties."""
    if stage.name == "block":
        attention = [
            Removal("attention", index, 0)
            for index, layer in enumerate(shape.layers)
            if layer.kv_heads
        ]
        return (
            *attention,
            *(
                Removal("mlp", index, 0)
                for index, layer in enumerate(shape.layers)
                if layer.mlp_channels
            ),
        )
    kind: Kind = stage.name
    widths = [
        layer.mlp_channels if kind == "mlp_channels" else layer.kv_heads for layer in shape.layers
    ]
    return tuple(
        Removal(kind, index, width - stage.group)
        for index, width in enumerate(widths)
        if width > stage.group
    )
