"""The Pareto front of a metric against ratio."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(
    points: Sequence[tuple[float, float]], *, lower_is_better: bool
) -> tuple[bool, ...]:
    """Which points no other beats.

    Args:
        points: (ratio, value): a higher ratio is better, and a lower or higher value. A point is
            beaten by one that is as good in both and better in one.
    """
    signed = [(ratio, -value if lower_is_better else value) for ratio, value in points]

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other != point and other[0] >= point[0] and other[1] >= point[1] for other in signed
        )

    return tuple(not beaten(point) for point in signed)
