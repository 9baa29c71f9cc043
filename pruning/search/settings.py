"""What a search is asked for, with everything resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from pruning.costs.target import Target
from pruning.importance.criteria import Importance
from pruning.models.geometry import Geometry

StrategyName = Literal["greedy", "block_influence", "random", "uniform", "allocation"]
"""What decides the next removal."""

STRATEGY_NAMES: tuple[StrategyName, ...] = get_args(StrategyName)

ShapeConstraint = Literal["none", "deployable", "one_width"]
"""Which shapes a search may come to: any, those that runtimes ask for, or one MLP width in all
layers, which is a plain checkpoint of the family.
"""

SHAPE_CONSTRAINTS: tuple[ShapeConstraint, ...] = get_args(ShapeConstraint)

CompensationName = Literal["none", "least_squares"]
"""Nothing, or the weights that remain refitted in closed form (`pruning.compensation`)."""

COMPENSATIONS: tuple[CompensationName, ...] = get_args(CompensationName)

SelectionName = Literal["exhaustive", "lazy"]
"""Which candidates of a step are scored: all, or those that the step before makes likely."""

SELECTIONS: tuple[SelectionName, ...] = get_args(SelectionName)

JudgedBy = Literal["score", "score_per_cost"]
"""What a step compares candidates by: their scores, or what the score rises by for each unit of
cost that goes (`pruning.search.goal`).
"""

JUDGES: tuple[JudgedBy, ...] = get_args(JudgedBy)

DEPLOYABLE_CHANNELS = 256
"""Deployable widths are multiples of it (docs/concepts/formats.md, "DeciLM folder")."""

_SEED = 42
_ROUNDS = 2
"""As many as were measured (docs/results.md); what a third would gain was not. One with a table of
another ratio: from the second round on it is a target's own, and nothing is shared."""
_WIDE = 1024
"""MLP channels from which on groups are multiples of hardware-friendly numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LazySettings:
    """What a lazy selection leaves out (`pruning.search.lazy`).

    Args:
        wave_size: candidates that are scored together, however many evaluators there are.
        tolerance: nats per token by which a candidate's last change may exceed the best new one
            and the candidate is still scored.
        rescore_every: steps of a stage after which all candidates are scored again.
        near_layers: candidates at most so many layers from a removal are scored again after it.
    """

    wave_size: int
    tolerance: float
    rescore_every: int
    near_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """The settings of one search of one model. `resolved` makes them and has the defaults.

    Args:
        strategy: what decides the next removal.
        target_ratio: removed / all parameters, below 1; 0 where other costs alone are asked for.
        distribution: shares of the block, MLP channel and attention head stages.
        mlp_group_channels: MLP channels that go at a time.
        head_group_channels: query channels that go at a time, KV heads x queries per KV head x
            head dim.
        importance: what orders channels and heads.
        shape_constraint: which shapes are allowed.
        compensation: what repairs a narrowed block, in scores, evaluation and exports alike.
        seed: of the strategies that draw.
        rounds: of an allocation, at most; by default 1 with `table_ratio`, 2 without.
        table_ratio: at which uniform shape an allocation measures its table; None: the target's.
        targets: in other costs than parameters.
        lazy: of a lazy selection; None: every candidate is scored.
        judged_by: what a step compares candidates by.
    """

    strategy: StrategyName
    target_ratio: float
    distribution: tuple[float, ...]
    mlp_group_channels: int
    head_group_channels: int
    importance: Importance
    shape_constraint: ShapeConstraint
    compensation: CompensationName
    seed: int
    rounds: int
    table_ratio: float | None = None
    targets: tuple[Target, ...] = ()
    lazy: LazySettings | None = None
    judged_by: JudgedBy = "score"

    @classmethod
    def resolved(
        cls,
        geometry: Geometry,
        *,
        target_ratio: float,
        distribution: Sequence[float] = (44, 52, 4),
        strategy: StrategyName = "greedy",
        mlp_group_channels: int | None = None,
        head_group_channels: int | None = None,
        importance: Importance = "activation",
        shape_constraint: ShapeConstraint = "none",
        compensation: CompensationName = "none",
        seed: int | None = None,
        rounds: int | None = None,
        table_ratio: float | None = None,
        targets: Sequence[Target] = (),
        lazy: LazySettings | None = None,
        judged_by: JudgedBy = "score",
    ) -> Self:
        """Settings for a model of these sizes; None takes the default of that model."""
        return cls(
            strategy=strategy,
            target_ratio=target_ratio,
            distribution=tuple(float(share) for share in distribution),
            mlp_group_channels=(
                _mlp_group(geometry, strategy, shape_constraint)
                if mlp_group_channels is None
                else mlp_group_channels
            ),
            head_group_channels=(
                geometry.channels_per_kv_head
                if head_group_channels is None
                else head_group_channels
            ),
            importance=importance,
            shape_constraint=shape_constraint,
            compensation=compensation,
            seed=_SEED if seed is None else seed,
            rounds=(1 if table_ratio else _ROUNDS) if rounds is None else rounds,
            table_ratio=table_ratio,
            targets=tuple(targets),
            lazy=lazy,
            judged_by=judged_by,
        )


def _mlp_group(
    geometry: Geometry, strategy: StrategyName, shape_constraint: ShapeConstraint
) -> int:
    channels = geometry.mlp_channels
    if shape_constraint == "one_width":  # a group goes from every layer at once
        return 64 if channels >= _WIDE else 1
    if strategy == "allocation":
        step = DEPLOYABLE_CHANNELS if shape_constraint == "deployable" else 128
        return _share(channels, parts=12, step=step, narrow_parts=8)
    return _share(channels, parts=10, step=DEPLOYABLE_CHANNELS, narrow_parts=4)


def _share(channels: int, *, parts: int, step: int, narrow_parts: int) -> int:
    """The multiple of `step` nearest to one of so many `parts`, at least one; one of `narrow_parts`
    of MLPs that are too narrow for that.
    """
    if channels < _WIDE:
        return max(1, channels // narrow_parts)
    return max(1, round(channels / parts / step)) * step
