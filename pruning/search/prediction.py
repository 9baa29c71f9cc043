"""What a table of sensitivities says of a shape that was not measured, and how far from what was
measured that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pruning.costs.target import Cost
from pruning.search.allocation import Block, Sensitivities, Solution, resized
from pruning.shape import UNITS, ModelShape


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """A round of an allocation, read back from `allocation.json`.

    Args:
        number: from 1.
        table: around the shape that the round began with; NaN where a score was not finite.
        base_score: KL of that shape from the dense model, nats per token.
        solutions: shapes that were measured whole: predicted and measured change of the score.
        others: KL of shapes that were measured beside them, nats per token: the uniform one of the
            target, where the table is around that of another ratio.
    """

    number: int
    table: Sensitivities
    base_score: float
    solutions: Mapping[ModelShape, tuple[float, float]]
    others: Mapping[ModelShape, float] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, data: Mapping[str, Any]) -> Self:
        """From an element of `rounds`."""
        base = ModelShape.parse(data["base"])
        changes: dict[Block, dict[int, float]] = {}
        for each in data["changes"]:
            sizes = changes.setdefault((each["layer"], each["unit"]), {})
            sizes[each["size"]] = math.nan if each["kl"] is None else each["kl"]
        solutions = {
            ModelShape.parse(each["shape"]): (each["predicted_kl"], each["kl"])
            for each in data["solutions"]
            if each["kl"] is not None
        }
        return cls(number, Sensitivities(base, changes), data["base_kl"], solutions)

    @property
    def measured(self) -> dict[ModelShape, float]:
        """KL of every shape that was measured: the base, one block changed, whole solutions, and
        what was measured beside them.
        """
        found = {self.table.base: self.base_score}
        for block, sizes in self.table.changes.items():
            for size, change in sizes.items():
                found[resized(self.table.base, block, size)] = self.base_score + change
        found |= {shape: self.base_score + kl for shape, (_, kl) in self.solutions.items()}
        found |= self.others
        return {shape: score for shape, score in found.items() if math.isfinite(score)}

    def num_changed(self, shape: ModelShape) -> int:
        """Blocks of another size than in the base."""
        return sum(
            getattr(mine, unit) != getattr(theirs, unit)
            for mine, theirs in zip(shape.layers, self.table.base.layers, strict=True)
            for unit in UNITS
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """KL of a solution from the dense model, by its table: the score of the base plus one measured
    change for each block that differs.

    Args:
        score: predicted, nats per token.
        measured: the same, where the run has measured this very shape; else None.
        distance: by cost, ratio of the solution less ratio of the base.
        measured_range: by cost, lowest and highest ratio of what the round measured.
        num_changed: blocks that differ from the base.
        reasons: why this is an extrapolation; none: it is not one.
        errors: measured less predicted score of the round's own solutions.
    """

    score: float
    measured: float | None
    distance: Mapping[str, float]
    measured_range: Mapping[str, tuple[float, float]]
    num_changed: int
    reasons: tuple[str, ...]
    errors: tuple[float, ...]

    @property
    def kind(self) -> str:
        """`measured`, `interpolation` or `extrapolation`: how much the number is worth."""
        if self.measured is not None:
            return "measured"
        return "extrapolation" if self.reasons else "interpolation"


def predict(found: MeasuredRound, solution: Solution, costs: Iterable[Cost]) -> Prediction:
    """What a round says of a solution of its table.

    Changes of single blocks were measured, and a few shapes that changed many: what lies outside
    of both is an extrapolation, since changes of many blocks add up near the base only.
    """
    shape, measured = solution.shape, found.measured
    distance: dict[str, float] = {}
    spans: dict[str, tuple[float, float]] = {}
    reasons: list[str] = []
    for cost in costs:
        ratios = [cost.ratio(each) for each in measured]
        ratio, spans[cost.name] = cost.ratio(shape), (min(ratios), max(ratios))
        distance[cost.name] = ratio - cost.ratio(found.table.base)
        if not spans[cost.name][0] <= ratio <= spans[cost.name][1]:
            low, high = spans[cost.name]
            reasons.append(
                f"ratio of {cost.name} {ratio:.4f}, measured were {low:.4f} to {high:.4f}"
            )
    changed = found.num_changed(shape)
    most = max(map(found.num_changed, measured))
    if changed > most:
        reasons.append(f"{changed} blocks changed together, measured were {most} at the most")
    score = found.base_score + solution.predicted
    if score < 0:
        reasons.append("the sum is below 0, which no KL is")
    return Prediction(
        score,
        measured.get(shape),
        distance,
        spans,
        changed,
        tuple(reasons),
        tuple(kl - predicted for predicted, kl in found.solutions.values()),
    )
