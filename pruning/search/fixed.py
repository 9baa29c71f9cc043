"""Searches whose path is known before their first step: the baselines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter

from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.search.allocation import size_of
from pruning.search.greedy import GreedySearch, candidates_of, is_allowed
from pruning.search.plan import SearchPlan, given_blocks, given_layers, plan_search
from pruning.search.settings import SearchSettings
from pruning.search.stages import Stage, StageName
from pruning.search.strategy import Measured, Strategy
from pruning.shape import Kind, ModelShape, Removal

PARTS = 4
"""In which `path_between` narrows a block, at most: its shapes stay close to those that an
allocation for a smaller target would have.
"""


class FixedSearch(GreedySearch):
    """Goes a path that is known before it starts: one candidate a step, which is scored like any
    other, so that the trajectory has its perplexity.

    Args:
        settings: of one stage only, such as a distribution of [1, 0, 0].
        path: removals that go together, such as both blocks of a layer: a search ends between two
            groups, never inside one. Groups that `shape_constraint` does not allow are left out.
    """

    advice = "Lower the target"

    def __init__(
        self,
        accounting: Accounting,
        settings: SearchSettings,
        path: Sequence[Sequence[Removal]],
    ) -> None:
        super().__init__(accounting, settings)
        num_layers, constraint = accounting.geometry.num_layers, settings.shape_constraint
        groups = [
            group
            for group in path
            if all(is_allowed(removal, num_layers, constraint) for removal in group)
        ]
        self._inside = next((each for each in self.stages if each.target_ratio > 0), None)
        self._removals = [removal for group in groups for removal in group]
        self._ends = {0, *accumulate(map(len, groups))}

    @property
    def stage(self) -> Stage | None:
        return super().stage if len(self.steps) in self._ends else self._inside

    def foreseen(self) -> tuple[Removal, ...]:
        """The rest of the path, up to where the target is met."""
        done = len(self.steps)
        return tuple(self._removals[done : done + self.expected_evaluations()])

    def expected_evaluations(self) -> int:
        """Evaluations still to come, exactly."""
        shape = self.shape
        for count, removal in enumerate(self._removals[len(self.steps) :]):
            if (
                len(self.steps) + count in self._ends
                and self.accounting.ratio(shape) >= self.stages[-1].target_ratio
            ):
                return count
            shape = shape.without(removal)
        return len(self._removals) - len(self.steps)

    def _candidates(self, stage: Stage, shape: ModelShape) -> tuple[Removal, ...]:
        return tuple(self._removals[len(self.steps) :][:1])


class PathSearch(FixedSearch):
    """Goes a path to its end, where a shape is that is known to keep every target.

    Args:
        scored_on: the calibration set of every step; None: that of its stage.
    """

    def __init__(
        self,
        accounting: Accounting,
        settings: SearchSettings,
        path: Sequence[Removal],
        scored_on: SetName | None = None,
    ) -> None:
        super().__init__(accounting, settings, [path])
        self._path, self._scored_on = path, scored_on

    @property
    def stage(self) -> Stage | None:
        """That of the removal that comes next, until all are made."""
        rest = self._path[len(self.steps) :]
        if not rest:
            return None
        name: StageName = "attention_heads" if rest[0].unit == "kv_heads" else "mlp_channels"
        return Stage(name, self.settings.target_ratio, scored_on=self._scored_on)

    def expected_evaluations(self) -> int:
        """Evaluations still to come, exactly."""
        return len(self._path) - len(self.steps)


class RandomStrategy(Strategy):
    """A baseline: attention and MLP blocks in a random order."""

    name = "random"
    method = "lot: blocks in a random order, a baseline"
    options = ("seed",)
    blocks_only = True
    is_control = True

    def search(self, accounting: Accounting, measured: Measured) -> FixedSearch:
        path = random_path(accounting.dense, self.settings.seed)
        return FixedSearch(accounting, self.settings, path)

    def planned(self, accounting: Accounting) -> SearchPlan:
        return plan_search(accounting, self.settings, given_blocks)


class BlockInfluenceStrategy(Strategy):
    """A baseline: whole layers, those first that change least what flows through them (ShortGPT,
    arXiv 2403.03853).
    """

    name = "block_influence"
    method = (
        "block influence (ShortGPT, [arXiv 2403.03853](https://arxiv.org/abs/2403.03853)): whole "
        "layers, those first that change least what flows through them"
    )
    needs = ("influence",)
    blocks_only = True
    whole_layers = True

    def search(self, accounting: Accounting, measured: Measured) -> FixedSearch:
        return FixedSearch(accounting, self.settings, measured["influence"].path)

    def planned(self, accounting: Accounting) -> SearchPlan:
        return plan_search(accounting, self.settings, given_layers)


def random_path(dense: ModelShape, seed: int) -> tuple[tuple[Removal, ...], ...]:
    """Every block of a dense model, one at a time, in an order drawn by
    `random.Random(seed).sample` from the order that breaks ties.

    It does not depend on the target: a longer search with the same seed goes on where a shorter one
    ended.
    """
    removals = candidates_of(Stage("block", 1.0), dense)
    return tuple((removal,) for removal in random.Random(seed).sample(removals, len(removals)))


def path_between(
    dense: ModelShape, shape: ModelShape, *, channels: int = 1, heads: int = 1
) -> tuple[Removal, ...]:
    """Removals that lead from a dense model to a shape, all blocks at once: each loses what it has
    to lose in up to four parts of whole groups, as equal as those come, and layers take turns.

    Args:
        channels: MLP channels that go at a time.
        heads: KV heads that go at a time.
    """
    found: list[tuple[float, Removal]] = []
    kinds: tuple[tuple[Kind, int], ...] = (("attention_heads", heads), ("mlp_channels", channels))
    for kind, step in kinds:
        for layer in range(len(dense.layers)):
            block = (layer, Removal(kind, layer, 0).unit)
            size, last = size_of(dense, block), size_of(shape, block)
            loss, now = size - last, size
            parts = min(PARTS, -(-loss // step))
            for part in range(1, parts + 1):
                lost = loss if part == parts else loss * part // parts // step * step
                if size - lost < now:
                    now = size - lost
                    found.append(((part - _phase(layer)) / parts, Removal(kind, layer, now)))
    return tuple(removal for _, removal in sorted(found, key=itemgetter(0)))


def _phase(layer: int) -> float:
    """0..1, far apart for layers that are close: multiples of the golden ratio."""
    return layer * (5**0.5 - 1) / 2 % 1
