"""The three-stage greedy search (METHOD: "The three stages"), and searches whose path is known before. They propose and observe; they never evaluate."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from pruning.costs.accounting import Accounting
from pruning.errors import InputError, ScoringError, TargetNotReached
from pruning.models.families import Geometry
from pruning.shape import Kind, ModelShape, Removal

StageName = Literal["block", "mlp_channels", "attention_heads"]
Layout = Literal["any", "portable"]
"""Which shapes a search may come to: any, or those that every runtime serves."""

Strategy = Literal["greedy", "block_influence", "random"]
"""What decides the next removal: the scores of all candidates, or one of two controls that do not look at scores (`FixedSearch`)."""

PORTABLE_CHANNELS = 256
"""Portable widths are multiples of it (FORMATS: "DeciLM folder")."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: what it removes, and the ratio at which it ends."""

    name: StageName
    target_ratio: float
    group: int = 0
    """MLP channels or KV heads that go at a time; unused by the block stage."""


@dataclass(frozen=True, slots=True)
class Step:
    """One committed removal.

    `nll` is the score of the shape after it, in nats per token. `margin` is the score of the second best candidate minus the best, in nats
    per token, None when there was only one. `candidates` are all that were scored, in order; a NaN or infinite score is kept as it came.
    """

    stage: StageName
    removal: Removal
    shape: ModelShape
    nll: float
    ratio: float
    margin: float | None
    candidates: tuple[tuple[Removal, float], ...]

    @property
    def excluded(self) -> tuple[Removal, ...]:
        """Candidates that were out because their score is not finite."""
        return tuple(removal for removal, nll in self.candidates if not math.isfinite(nll))


def make_stages(
    accounting: Accounting,
    *,
    target_ratio: float,
    distribution: Sequence[float],
    mlp_group_channels: int,
    head_group_channels: int,
    layout: Layout = "any",
) -> tuple[Stage, ...]:
    """The published three stages with cumulative targets.

    Args:
        target_ratio: removed / all parameters, 0..1 exclusive.
        distribution: shares of the block, MLP channel and attention head stages; normalised here.
        mlp_group_channels: MLP channels that go at a time.
        head_group_channels: query channels that go at a time, KV heads x queries per KV head x head dim.

    Raises:
        InputError: with every problem at once.
    """
    groups = {"mlp_group_channels": mlp_group_channels, "head_group_channels": head_group_channels}
    problems = stage_problems(accounting, distribution=distribution, layout=layout, **groups)
    if problems:
        raise InputError("\n".join(problems))
    total = sum(distribution)
    return (
        Stage("block", target_ratio * (distribution[0] / total)),
        Stage("mlp_channels", target_ratio * ((distribution[0] + distribution[1]) / total), mlp_group_channels),
        Stage("attention_heads", target_ratio, head_group_channels // accounting.geometry.channels_per_kv_head),
    )


def stage_problems(
    accounting: Accounting, *, distribution: Sequence[float], mlp_group_channels: int, head_group_channels: int, layout: Layout = "any"
) -> list[str]:
    """What is wrong with these settings for this model, one message each."""
    geometry, problems = accounting.geometry, []
    width_share = sum(distribution[1:]) > 0
    if width_share and not accounting.family.prunes_widths:
        return [
            f"search.distribution: {list(distribution)} prunes widths, but the family {accounting.family.model_type!r} is pruned by whole blocks only; "
            "use search.distribution=[1,0,0]"
        ]
    if distribution[1] > 0 and not 0 < mlp_group_channels <= geometry.mlp_channels:
        problems.append(f"search.mlp_group_channels: {mlp_group_channels}; this model's MLPs have {geometry.mlp_channels} channels")
    elif distribution[1] > 0 and layout == "portable" and (geometry.mlp_channels % PORTABLE_CHANNELS or mlp_group_channels % PORTABLE_CHANNELS):
        problems.append(
            f"search.layout: portable, whose MLP widths are multiples of {PORTABLE_CHANNELS}: this model has {geometry.mlp_channels} channels and "
            f"search.mlp_group_channels takes {mlp_group_channels} at a time; change the group, leave the widths alone (a search.distribution whose second "
            "number is 0), or use search.layout=any"
        )
    per_head = geometry.channels_per_kv_head
    full_width = geometry.kv_heads * per_head
    if distribution[2] > 0 and geometry.kv_heads == 1:
        problems.append(
            f"search.distribution: {list(distribution)} prunes heads, but this model has one KV head in a layer, which stays; use search=multipruner_mqa, "
            "or a distribution whose last number is 0"
        )
    elif distribution[2] > 0 and (not 0 < head_group_channels < full_width or head_group_channels % per_head or full_width % head_group_channels):
        whole = [heads * per_head for heads in range(1, geometry.kv_heads) if geometry.kv_heads % heads == 0]
        problems.append(
            f"search.head_group_channels: {head_group_channels}; groups are whole KV heads with their queries ({per_head} query channels each here) "
            f"that divide all {full_width}, and one of them stays: one of {whole}"
        )
    return problems


def default_mlp_group(geometry: Geometry) -> int:
    """The multiple of 256 nearest to a tenth of the MLP, at least one; a quarter of MLPs that are too narrow for that."""
    if geometry.mlp_channels < 1024:
        return max(1, geometry.mlp_channels // 4)
    return max(1, round(geometry.mlp_channels / 10 / 256)) * 256


class GreedySearch:
    """Proposes the candidates of the next step and commits the one that scored best.

    It holds no model and no clock: replaying the same scores rebuilds the same search.

    Example:
        >>> while not search.done:                                       # doctest: +SKIP
        ...     candidates = search.propose()
        ...     step = search.observe({candidate: score(candidate) for candidate in candidates})
    """

    advice = "Lower the target, give this stage a smaller share in search.distribution, or use smaller groups"
    """What to do when candidates run out."""

    def __init__(self, accounting: Accounting, stages: Sequence[Stage], layout: Layout = "any") -> None:
        self.accounting = accounting
        self.layout = layout
        self.stages = tuple(stages)
        self.shape = accounting.dense
        self.steps: list[Step] = []

    @property
    def ratio(self) -> float:
        return self.accounting.ratio(self.shape)

    @property
    def stage(self) -> Stage | None:
        """The first stage whose target is not met; None when all are."""
        return next((stage for stage in self.stages if self.ratio < stage.target_ratio), None)

    @property
    def done(self) -> bool:
        return self.stage is None

    def propose(self) -> tuple[Removal, ...]:
        """Every candidate of the next step, in the order that breaks ties: attention before MLP, then the lower layer.

        Raises:
            TargetNotReached: there is none, though the stage's target is not met.
        """
        stage = self.stage
        if stage is None:
            return ()
        candidates = self._candidates(stage, self.shape)
        if not candidates:
            raise TargetNotReached(
                f"search.target_ratio: stage {stage.name!r} has no candidate left at ratio {self.ratio:.4f}, below its target of "
                f"{stage.target_ratio:.4f} (after {len(self.steps)} steps). {self.advice}. Everything up to here is kept"
            )
        return candidates

    def observe(self, scores: Mapping[Removal, float]) -> Step:
        """Commits the candidate with the lowest NLL; equal scores: the first proposed. Scores that are not finite are out.

        Raises:
            ScoringError: no score is finite.
            KeyError: a candidate has no score.
        """
        stage = self.stage
        assert stage is not None
        scored = tuple((candidate, scores[candidate]) for candidate in self.propose())
        finite = [(candidate, nll) for candidate, nll in scored if math.isfinite(nll)]
        if not finite:
            raise ScoringError(
                f"step {len(self.steps) + 1} ({stage.name}): the NLL of all {len(scored)} candidates is NaN or infinite, the first is "
                f"{scored[0][1]} for {scored[0][0]}. Weights or dtype overflow: try model.dtype=float32, and check the dense perplexity"
            )
        best, nll = min(finite, key=lambda pair: pair[1])
        rest = [other for candidate, other in finite if candidate != best]
        self.shape = self.shape.without(best)
        step = Step(stage.name, best, self.shape, nll, self.ratio, min(rest) - nll if rest else None, scored)
        self.steps.append(step)
        return step

    def expected_evaluations(self) -> int:
        """Evaluations still to come, estimated: each step removes what the mean candidate would, and candidates stay as many as now."""
        total, shape, ratio = 0, self.shape, self.ratio
        for stage in self.stages:
            candidates = self._candidates(stage, shape)
            if ratio >= stage.target_ratio or not candidates:
                continue
            mean = sum(self.accounting.ratio(shape.without(candidate)) for candidate in candidates) / len(candidates) - self.accounting.ratio(shape)
            steps = math.ceil((stage.target_ratio - ratio) / mean)
            total += steps * len(candidates)
            ratio += steps * mean
        return total

    def _candidates(self, stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
        candidates = _candidates(stage, shape)
        return candidates if self.layout == "any" else tuple(removal for removal in candidates if _is_portable(removal, len(shape.layers)))


class FixedSearch(GreedySearch):
    """Goes a path that is known before it starts: one candidate a step, which is scored like any other, so that the trajectory has its perplexity.

    Args:
        stages: of blocks only, which is a distribution of [1, 0, 0].
        path: removals that go together, such as both blocks of a layer: a search ends between two groups, never inside one. `portable` leaves out
            groups that it does not allow.
    """

    advice = "Lower the target"

    def __init__(self, accounting: Accounting, stages: Sequence[Stage], path: Sequence[Sequence[Removal]], layout: Layout = "any") -> None:
        super().__init__(accounting, stages, layout)
        num_layers = accounting.geometry.num_layers
        groups = [group for group in path if layout == "any" or all(_is_portable(removal, num_layers) for removal in group)]
        self._removals = [removal for group in groups for removal in group]
        self._ends = {0, *accumulate(map(len, groups))}

    @property
    def stage(self) -> Stage | None:
        return super().stage if len(self.steps) in self._ends else self.stages[0]

    def expected_evaluations(self) -> int:
        """Evaluations still to come, exactly."""
        shape = self.shape
        for count, removal in enumerate(self._removals[len(self.steps) :]):
            if len(self.steps) + count in self._ends and self.accounting.ratio(shape) >= self.stages[0].target_ratio:
                return count
            shape = shape.without(removal)
        return len(self._removals) - len(self.steps)

    def _candidates(self, stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
        return tuple(self._removals[len(self.steps) :][:1])


def random_path(dense: ModelShape, seed: int) -> tuple[tuple[Removal, ...], ...]:
    """Every block of a dense model, one at a time, in an order drawn by `random.Random(seed).sample` from the order that breaks ties.

    It does not depend on the target: a longer search with the same seed goes on where a shorter one ended.
    """
    removals = _candidates(Stage("block", 1.0), dense)
    return tuple((removal,) for removal in random.Random(seed).sample(removals, len(removals)))


def _is_portable(removal: Removal, num_layers: int) -> bool:
    """Every runtime wants attention in the first layer and an MLP in the last (FORMATS: "DeciLM folder", "GGUF")."""
    return not (removal.kind == "attention" and removal.layer == 0) and not (removal.kind == "mlp" and removal.layer == num_layers - 1)


def _candidates(stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
    if stage.name == "block":
        attention = [Removal("attention", index, 0) for index, layer in enumerate(shape.layers) if layer.kv_heads]
        return (*attention, *(Removal("mlp", index, 0) for index, layer in enumerate(shape.layers) if layer.mlp_channels))
    kind: Kind = stage.name
    widths = [layer.mlp_channels if kind == "mlp_channels" else layer.kv_heads for layer in shape.layers]
    return tuple(Removal(kind, index, width - stage.group) for index, width in enumerate(widths) if width > stage.group)
