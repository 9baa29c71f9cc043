"""Allocation in rounds: measure the neighbours of a shape, solve, measure what was solved, keep
what is best; again around that, until a round gains less than its standard error.

Like `GreedySearch` it proposes and observes, and never evaluates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.errors import InputError, ScoringError
from pruning.scoring.score import ShapeScore
from pruning.search.allocation import (
    Block,
    Limit,
    Sensitivities,
    Solution,
    neighbours,
    resized,
    size_of,
    solve,
)
from pruning.search.allocation_result import Allocation
from pruning.search.greedy import is_allowed
from pruning.search.settings import ShapeConstraint
from pruning.shape import Kind, ModelShape, Removal

MOVES = (8, 16, 32, None)
"""A solution is made for each of these bounds on changed blocks, since changes add up best where
few are made, and the one that measures best is kept."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Shapes to score, all near `base`: no order between them, any evaluator any of them."""

    base: ModelShape
    shapes: tuple[ModelShape, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to.

    Args:
        table: sensitivities around the shape that it began with.
        base_score: of that shape, nats per token.
        solutions: with their measured change of score, in the order of `MOVES`, no shape twice.
        score: of `shape`, with which it ended.
        gain: of the best solution over what it had to beat, nats per token: over the base, or over
            the uniform shape of the target where the table is around another one. With its paired
            standard error over the sequences; None where there is one only, or nothing finite.
    """

    table: Sensitivities
    base_score: float
    solutions: tuple[tuple[Solution, float], ...]
    shape: ModelShape
    score: float
    gain: float
    gain_stderr: float | None

    def to_json(self) -> dict[str, Any]:
        """As `allocation.json` has it (docs/reference/output_files.md); null is not finite."""
        return {
            "base": self.table.base.text,
            "base_kl": self.base_score,
            "changes": [
                {"layer": layer, "unit": unit, "size": size, "kl": _finite(change)}
                for (layer, unit), sizes in self.table.changes.items()
                for size, change in sorted(sizes.items())
            ],
            "solutions": [
                {
                    "shape": solution.shape.text,
                    "predicted_kl": solution.predicted,
                    "kl": _finite(change),
                }
                for solution, change in self.solutions
            ],
            "shape": self.shape.text,
            "gain": self.gain,
            "gain_stderr": self.gain_stderr,
        }


class AllocationSearch:
    """Proposes waves of shapes and learns their scores.

    Args:
        start: the shape that the first table is around, such as the uniform one of the target.
        uniform: a shape that keeps every limit, where `start` is not one of this target: it is
            measured with the first solutions, and they have to beat it.
        group: MLP channels of one step; the first round looks two steps up and down.
        heads: KV heads of one step; 0 leaves attention alone.
        constraint: which shapes are allowed.

    Example:
        >>> while (wave := search.propose()) is not None:                 # doctest: +SKIP
        ...     search.observe({shape: score(shape) for shape in wave.shapes})
    """

    def __init__(
        self,
        dense: ModelShape,
        start: ModelShape,
        limits: Sequence[Limit],
        *,
        group: int,
        heads: int = 1,
        constraint: ShapeConstraint = "none",
        max_rounds: int = 3,
        uniform: ModelShape | None = None,
    ) -> None:
        self.dense, self.shape, self.limits = dense, start, tuple(limits)
        self.group, self.heads, self.max_rounds = group, heads, max_rounds
        self.constraint, self._uniform = constraint, uniform
        self.rounds: list[Round] = []
        self._scores: dict[ModelShape, ShapeScore] = {}
        self._solutions: tuple[Solution, ...] | None = None
        self._done = max_rounds == 0

    @property
    def done(self) -> bool:
        return self._done

    @property
    def num_shapes(self) -> int:
        """Shapes that were scored so far."""
        return len(self._scores)

    @property
    def reference(self) -> ModelShape:
        """What the solutions of this round have to beat."""
        return self.shape if self._uniform is None or self.rounds else self._uniform

    def propose(self) -> Wave | None:
        """What is to be scored next; None when the search is over. Nothing is asked twice."""
        if self._done:
            return None
        if self._solutions is None:
            wanted = [self.shape, *self._neighbour_shapes().values()]
        else:
            wanted = [self.reference, *(solution.shape for solution in self._solutions)]
        return Wave(self.shape, tuple(dict.fromkeys(s for s in wanted if s not in self._scores)))

    def observe(self, scores: Mapping[ModelShape, ShapeScore]) -> None:
        """Takes the scores of a wave, in which a shape with a score that is not finite is out.

        Args:
            scores: on each sequence of the selection text: KL from the dense model in the place of
                NLL.

        Raises:
            KeyError: a shape of the wave has no score.
            ScoringError: the base of the first round, or what its solutions have to beat, has no
                finite score.
        """
        wave = self.propose()
        assert wave is not None
        self._scores |= {shape: scores[shape] for shape in wave.shapes}
        known = [
            self._scores[each] for each in (self.shape, self.reference) if each in self._scores
        ]
        if not all(math.isfinite(score.nll) for score in known):
            raise ScoringError(
                "the score of the shape that allocation starts from is NaN or infinite: try "
                "model.dtype=float32, and check the dense perplexity"
            )
        if self._solutions is None:
            self._solutions = self._solve()
            wave = self.propose()
            if wave is not None and not wave.shapes:
                self._conclude()
        else:
            self._conclude()

    def result(self) -> Allocation:
        """What the rounds came to; call it when they are over."""
        first, last = self.rounds[0], self.rounds[-1]
        start = self._uniform or first.table.base
        return Allocation(
            start,
            self.shape,
            self._scores[start].nll,
            last.score,
            self.num_shapes,
            tuple(each.to_json() for each in self.rounds),
        )

    def _neighbour_shapes(self) -> dict[tuple[Block, int], ModelShape]:
        reach = (2, 1, -1, -2) if len(self.rounds) < 2 else (1, -1)
        sizes = neighbours(
            self.shape,
            self.dense,
            channel_steps=[self.group * step for step in reach],
            head_steps=(self.heads, -self.heads) if self.heads else (),
        )
        return {
            (block, size): resized(self.shape, block, size)
            for block, found in sizes.items()
            for size in found
            if size or not self._is_kept(block)
        }

    def sizes(self) -> Sensitivities:
        """What the next table has of each block, with nothing known of it yet."""
        found: dict[Block, dict[int, float]] = {}
        for block, size in self._neighbour_shapes():
            found.setdefault(block, {size_of(self.shape, block): 0.0})[size] = 0.0
        return Sensitivities(self.shape, found)

    def _is_kept(self, block: Block) -> bool:
        """Whether the constraint keeps a block, of whatever size."""
        layer, unit = block
        kind: Kind = "attention" if unit == "kv_heads" else "mlp"
        return not is_allowed(Removal(kind, layer, 0), len(self.dense.layers), self.constraint)

    def _table(self) -> Sensitivities:
        base = self._scores[self.shape].nll
        changes: dict[Block, dict[int, float]] = {}
        for (block, size), shape in self._neighbour_shapes().items():
            layer, unit = block
            own = int(getattr(self.shape.layers[layer], unit))
            changes.setdefault(block, {own: 0.0})[size] = self._scores[shape].nll - base
        return Sensitivities(self.shape, changes)

    def _solve(self) -> tuple[Solution, ...]:
        self._current = self._table()
        found: dict[ModelShape, Solution] = {}
        for moves in MOVES:
            try:
                solution = solve(self._current, self.limits, max_moves=moves)
            except InputError:
                if moves is None:
                    raise
                continue  # a target that is far from the table takes more changes
            if solution.shape != self.shape:
                found.setdefault(solution.shape, solution)
        return tuple(found.values())

    def _conclude(self) -> None:
        assert self._solutions is not None
        base, reference = self._scores[self.shape], self._scores[self.reference]
        measured = [
            (solution, self._scores[solution.shape].nll - base.nll) for solution in self._solutions
        ]
        finite = [pair for pair in measured if math.isfinite(pair[1])]
        best, _ = min(finite, key=lambda pair: pair[1], default=(None, math.inf))
        score = reference if best is None else self._scores[best.shape]
        gain = reference.nll - score.nll
        stderr = None if best is None else score.stderr_of_difference(reference)
        better = best is not None and gain > 0
        self.shape = best.shape if best is not None and better else self.reference
        self.rounds.append(
            Round(
                self._current,
                base.nll,
                tuple(measured),
                self.shape,
                self._scores[self.shape].nll,
                gain if better else 0.0,
                stderr,
            )
        )
        self._solutions = None
        significant = better and stderr is not None and gain >= stderr
        self._done = not significant or len(self.rounds) >= self.max_rounds


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
