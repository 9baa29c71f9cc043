"""What the points of a sweep take together: what several have in common is paid for once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pipelines.config.plan import PlanConfig
from pipelines.config.target import TargetConfig
from pruning.search.strategies import STRATEGIES


@dataclass(frozen=True, slots=True, eq=False)
class PointPlan:
    """One point.

    Args:
        report: what plan.json says of it.
        block_flops: of its block stage alone; None: not known.
    """

    config: PlanConfig
    report: Mapping[str, Any]
    block_flops: float | None

    @property
    def trunk(self) -> str:
        """Equal for points whose block stages have evaluations in common: of searches that differ
        in target and distribution alone, the steps of the shorter one; of allocations around the
        uniform shape of one ratio, the first wave.
        """
        search = self.config.search
        if self._is_allocation:
            ratio = search.target_ratio if search.table_ratio is None else search.table_ratio
            if search.table_ratio is not None:
                search = replace(search, target=TargetConfig(*[None] * len(fields(TargetConfig))))
            search = replace(search, target_ratio=ratio, table_ratio=None, rounds=None)
        else:
            search = replace(search, target_ratio=0.0, distribution=[])
        return str((self.config.model, self.config.calibration, search))

    @property
    def order_key(self) -> str:
        """Equal for points with one channel order, and so with one set of statistics, as far as
        options tell: a sweep compares the text itself, and may share more.
        """
        config = self.config
        return str(
            (
                config.model,
                config.calibration,
                config.search.importance,
                config.search.compensation,
            )
        )

    def evaluations(self, stage: str, end: str) -> int:
        """The least (`min`) or the most (`max`) of a stage."""
        found = self.report["evaluations"].get(stage)
        return 0 if found is None else int(found[end])

    def in_common(self, end: str) -> int:
        """Those of the block stage that points with the same trunk have too."""
        return self.evaluations("block", "min" if self._is_allocation else end)

    @property
    def flops_in_common(self) -> float:
        """FLOPs of `in_common`, as `block_flops` in the middle of the range."""
        assert self.block_flops is not None
        both = [self.evaluations("block", end) for end in ("min", "max")]
        common = [self.in_common(end) for end in ("min", "max")]
        return self.block_flops * sum(common) / sum(both) if sum(both) else self.block_flops

    @property
    def _is_allocation(self) -> bool:
        return STRATEGIES[self.config.search.strategy].solves_shares


def evaluations_together(points: Sequence[PointPlan]) -> dict[str, dict[str, int]]:
    """The least and the most of all points, by stage."""
    found: dict[str, dict[str, int]] = {}
    for stage in dict.fromkeys(stage for point in points for stage in point.report["evaluations"]):
        found[stage] = {}
        for end in ("min", "max"):
            total = sum(point.evaluations(stage, end) for point in points)
            if stage == "block":
                total -= int(_paid_twice(points, [point.in_common(end) for point in points]))
            found[stage][end] = total
    return found


def flops_together(points: Sequence[PointPlan]) -> float | None:
    """FLOPs of all points; None if those of one are not known."""
    if any(point.block_flops is None for point in points):
        return None
    total: float = sum(point.report["flops"] for point in points)
    first = {point.order_key: point for point in reversed(points)}
    statistics = sum(
        (point.report.get("statistics") or {}).get("flops") or 0.0
        for point in points
        if first[point.order_key] is not point
    )
    return total - statistics - _paid_twice(points, [point.flops_in_common for point in points])


def _paid_twice(points: Sequence[PointPlan], in_common: Sequence[float]) -> float:
    """Of what the points with one trunk have in common, all but the most that one has."""
    trunks: dict[str, list[float]] = {}
    for point, amount in zip(points, in_common, strict=True):
        trunks.setdefault(point.trunk, []).append(amount)
    return sum(sum(amounts) - max(amounts) for amounts in trunks.values())
