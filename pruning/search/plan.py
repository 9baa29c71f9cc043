"""What a search will take, from the configuration alone: steps and evaluations over all paths that
it could go, and their FLOPs.

Which blocks go is not known before, and attention and MLP blocks differ in size: so every way
through the stages is counted, and what is given is the least and the most of any of them. Layers
count as alike, so that a way is fully described by how many of each kind go: exact but for mixtures
with ordinary layers, whose mean stands for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.search.settings import SearchSettings, ShapeConstraint
from pruning.search.stages import Stage, StageName, make_stages, token_set_of
from pruning.shape import LayerShape, ModelShape, Removal


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most of all paths."""

    min: int
    max: int

    @property
    def middle(self) -> float:
        return (self.min + self.max) / 2

    def to_json(self) -> dict[str, int]:
        return {"min": self.min, "max": self.max}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: `evaluations` are candidates scored, each on the whole calibration set of the
    stage.
    """

    name: StageName
    target_ratio: float
    steps: Range
    evaluations: Range
    ratio: tuple[float, float]
    """Lowest and highest at which the stage can end; where a solver decides, is expected to."""
    scored_on: SetName | None = None
    """As in `Stage`."""

    @property
    def token_set(self) -> SetName:
        """The calibration set that its candidates are scored on."""
        return self.scored_on or token_set_of(self.name)


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """All stages.

    `dead_ends` says that some paths run out of candidates before the target, `impossible` that all
    do: then `stages` ends there. `at_most` says that how many candidates are scored is not known
    before, only that it is within these evaluations.
    """

    stages: tuple[StagePlan, ...]
    dead_ends: bool
    impossible: StageName | None
    at_most: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": {stage.name: stage.steps.to_json() for stage in self.stages},
            "evaluations": {stage.name: stage.evaluations.to_json() for stage in self.stages},
            "ratio": {
                stage.name: {"min": stage.ratio[0], "max": stage.ratio[1]} for stage in self.stages
            },
            "dead_ends": self.dead_ends,
            **({"at_most": True} if self.at_most else {}),
        }


@dataclass(frozen=True, slots=True)
class Way:
    """Where a path can be at the end of a stage: parameters removed, and layers that still have
    each kind of block.
    """

    removed: int
    attention_layers: int
    mlp_layers: int


@dataclass(frozen=True, slots=True)
class End:
    """One end of a stage: where, after how many steps, and the least and the most candidates that
    are scored on the way.
    """

    way: Way
    steps: int
    fewest: int
    most: int


BlockPaths = Callable[[Accounting, Stage, Way, ShapeConstraint], Iterator[End]]
"""Every end of a block stage from one beginning: none where blocks do not come to the target, which
no order of them changes.
"""


def plan_search(
    accounting: Accounting, settings: SearchSettings, block_paths: BlockPaths
) -> SearchPlan:
    """Follows every path at once.

    Args:
        block_paths: the ways that the strategy can go through the block stage: `compared_blocks`,
            `given_blocks` or `given_layers`.

    Raises:
        InputError: the settings do not fit the model.
    """
    num_layers = accounting.geometry.num_layers
    ways = {Way(0, num_layers, num_layers)}
    plans: list[StagePlan] = []
    dead_ends = False
    for stage in make_stages(accounting, settings):
        ended = [
            end for way in ways for end in _through(accounting, stage, way, settings, block_paths)
        ]
        reached = [end for end in ended if end is not None]
        dead_ends = dead_ends or len(reached) < len(ended)
        if not reached:
            return SearchPlan(tuple(plans), True, stage.name)
        ways = {end.way for end in reached}
        ratios = [way.removed / accounting.num_dense_parameters for way in ways]
        plans.append(
            StagePlan(
                stage.name,
                stage.target_ratio,
                Range(
                    min(end.steps for end in reached),
                    max(end.steps for end in reached),
                ),
                Range(min(end.fewest for end in reached), max(end.most for end in reached)),
                (min(ratios), max(ratios)),
            )
        )
    return SearchPlan(tuple(plans), dead_ends, None)


def merged(plans: Sequence[SearchPlan]) -> SearchPlan:
    """One plan whose ranges hold those of all, which are for targets close to one another."""
    possible = [plan for plan in plans if plan.impossible is None] or list(plans)
    stages = []
    for same in zip(*(plan.stages for plan in possible), strict=False):
        steps, evaluations = (
            [getattr(stage, name) for stage in same] for name in ("steps", "evaluations")
        )
        stages.append(
            StagePlan(
                same[0].name,
                sum(stage.target_ratio for stage in same) / len(same),
                Range(min(each.min for each in steps), max(each.max for each in steps)),
                Range(min(each.min for each in evaluations), max(each.max for each in evaluations)),
                (min(stage.ratio[0] for stage in same), max(stage.ratio[1] for stage in same)),
                same[0].scored_on,
            )
        )
    return replace(
        possible[0], stages=tuple(stages), dead_ends=any(plan.dead_ends for plan in plans)
    )


def step_flops(
    accounting: Accounting,
    removals: Sequence[Removal],
    base: ModelShape,
    *,
    num_sequences: int,
    sequence_length: int,
    num_prefixes: int = 1,
) -> float | None:
    """FLOPs of one step: the base shape once for each batch (or more often, where several
    evaluators share one), then each candidate from its layer up; a candidate that is alone runs
    whole, and the base does not. None: not known.

    Args:
        num_prefixes: times that each token runs through the base shape.
    """
    whole = accounting.flops_per_token(base, context_length=sequence_length)
    if accounting.head_weights is None or whole is None:
        return None
    tokens = num_sequences * sequence_length
    layers = [
        accounting.layer_flops(index, layer, context_length=sequence_length) or 0
        for index, layer in enumerate(base.layers)
    ]
    suffixes = [sum(layers[index:]) for index in range(len(layers))]
    head = 2 * accounting.head_weights
    if len(removals) == 1:
        alone = accounting.flops_per_token(
            base.without(removals[0]), context_length=sequence_length
        )
        assert alone is not None
        return float(tokens * alone)
    return float(
        tokens
        * (num_prefixes * suffixes[0] + sum(suffixes[removal.layer] + head for removal in removals))
    )


def planned_flops(
    accounting: Accounting,
    plan: SearchPlan,
    *,
    tokens: dict[str, int],
    sequence_length: int,
    num_prefixes: dict[str, float],
) -> float | None:
    """FLOPs of a whole search in the middle of its range: candidates lie evenly over the layers,
    and the model shrinks evenly towards each stage's end. Where a step has one candidate, that runs
    whole. With `at_most`, of as many evaluations as there can be. None: not known.

    Args:
        tokens: calibration tokens of the stages `block` and `width`.
        num_prefixes: times that each of them runs through the base shape in a step.
    """
    dense = accounting.flops_per_token(accounting.dense, context_length=sequence_length)
    if accounting.head_weights is None or dense is None:
        return None
    head = 2 * accounting.head_weights
    num_layers, total, ratio = accounting.geometry.num_layers, 0.0, 0.0
    for stage in plan.stages:
        name = stage.token_set
        end = sum(stage.ratio) / 2
        left = 1 - (ratio + end) / 2
        body = (dense - head) * left
        alone = stage.evaluations == stage.steps
        share = 1.0 if alone else (num_layers + 1) / (2 * num_layers)
        prefixes = 0.0 if alone else stage.steps.middle * num_prefixes[name]
        evaluations = stage.evaluations.max if plan.at_most else stage.evaluations.middle
        total += tokens[name] * (prefixes * body + evaluations * (body * share + head))
        ratio = end
    return total


def _through(
    accounting: Accounting,
    stage: Stage,
    way: Way,
    settings: SearchSettings,
    block_paths: BlockPaths,
) -> Iterator[End | None]:
    """Every end of a stage from one beginning; None for a dead end."""
    if not _below(accounting, way.removed, stage):
        yield End(way, 0, 0, 0)
    elif stage.name == "block":
        yield from block_paths(accounting, stage, way, settings.shape_constraint)
    else:
        yield _through_widths(accounting, stage, way)


def compared_blocks(
    accounting: Accounting, stage: Stage, way: Way, constraint: ShapeConstraint
) -> Iterator[End]:
    """Blocks in any order, every one that remains a candidate of each step."""
    kept = 0 if constraint == "none" else 1
    attention, mlp = _block_sizes(accounting)
    most_attention, most_mlp = way.attention_layers - kept, way.mlp_layers - kept
    for num_attention in range(most_attention + 1):
        for num_mlp in range(most_mlp + 1):
            removed = way.removed + num_attention * attention + num_mlp * mlp
            before = [
                removed - size
                for count, size in ((num_attention, attention), (num_mlp, mlp))
                if count
            ]
            if not _below(accounting, removed, stage) and any(
                _below(accounting, earlier, stage) for earlier in before
            ):
                steps = num_attention + num_mlp
                candidates = sum(most_attention + most_mlp - step for step in range(steps))
                there = Way(removed, way.attention_layers - num_attention, way.mlp_layers - num_mlp)
                yield End(there, steps, candidates, candidates)


def given_blocks(
    accounting: Accounting, stage: Stage, way: Way, constraint: ShapeConstraint
) -> Iterator[End]:
    """Blocks in an order that is known before, such as a random one: any order can come, with one
    candidate a step.
    """
    for end in compared_blocks(accounting, stage, way, constraint):
        yield End(end.way, end.steps, end.steps, end.steps)


def given_layers(
    accounting: Accounting, stage: Stage, way: Way, constraint: ShapeConstraint
) -> Iterator[End]:
    """Whole layers, two steps each; `deployable` keeps the first and the last."""
    num_layers, size = accounting.geometry.num_layers, sum(_block_sizes(accounting))
    most = num_layers if constraint == "none" else max(0, num_layers - 2)
    for count in range(most + 1):
        if not _below(accounting, way.removed + count * size, stage):
            left = num_layers - count
            there = Way(way.removed + count * size, left, left)
            yield End(there, 2 * count, 2 * count, 2 * count)
            return


def _through_widths(accounting: Accounting, stage: Stage, way: Way) -> End | None:
    """Groups are of one size, so the number of steps is given.

    A layer is a candidate until only its last group remains: fewest candidates where one
    layer after the other is used up, most where all last as long as they can.
    """
    geometry = accounting.geometry
    if stage.name == "mlp_channels":
        num_layers, width = way.mlp_layers, geometry.mlp_channels
        narrowed = LayerShape(geometry.kv_heads, width - stage.group)
    else:
        num_layers, width = way.attention_layers, geometry.kv_heads
        narrowed = LayerShape(width - stage.group, geometry.mlp_channels)
    size, per_layer = _removed(accounting, narrowed), (width - 1) // stage.group
    steps, removed, low, high = 0, way.removed, 0, 0
    while _below(accounting, removed, stage):
        if steps == num_layers * per_layer:
            return None
        low += num_layers - steps // per_layer
        high += min(num_layers, num_layers * per_layer - steps)
        steps += 1
        removed += size
    return End(Way(removed, way.attention_layers, way.mlp_layers), steps, low, high)


def _below(accounting: Accounting, removed: int, stage: Stage) -> bool:
    return removed / accounting.num_dense_parameters < stage.target_ratio


def _block_sizes(accounting: Accounting) -> tuple[int, int]:
    """Parameters of an attention and of an MLP block: where layers differ, as in mixtures with
    ordinary MLPs, of the mean one, rounded up, so that what all of them come to is within reach.
    """
    geometry, num_layers = accounting.geometry, accounting.geometry.num_layers

    def mean(layer: LayerShape) -> int:
        kept = accounting.num_parameters(ModelShape((layer,) * num_layers))
        return -(-(accounting.num_dense_parameters - kept) // num_layers)

    return mean(LayerShape(0, geometry.mlp_channels)), mean(LayerShape(geometry.kv_heads, 0))


def _removed(accounting: Accounting, layer: LayerShape) -> int:
    """Parameters that one layer loses when `layer` is what remains of it."""
    return accounting.num_dense_parameters - accounting.num_parameters(
        ModelShape((layer, *accounting.dense.layers[1:]))
    )
