"""How many standard errors decided a step: below two, another calibration text may well have chosen
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pruning.shape import Removal

NEAR_TIE_STDERRS = 2.0
"""A difference below so many of its standard errors could be chance: another calibration text may
well turn it around.
"""


def num_stderrs(difference: float | None, stderr: float | None) -> float | None:
    """A difference in its standard errors.

    Equal scores are 0 of them; a difference that every sequence agrees on to the last bit,
    infinitely many.
    """
    if difference is None or stderr is None:
        return None
    if difference == 0:
        return 0.0
    return difference / stderr if stderr else float("inf")


def distances(
    nll: float | None, others: Iterable[tuple[float | None, float | None]]
) -> tuple[float, ...]:
    """By how many standard errors each other candidate lost, where that is known, ascending.

    Args:
        nll: of the candidate that was removed, nats per token.
        others: NLL of each other one, and the standard error of its difference.
    """
    found = [
        num_stderrs(other - nll, stderr)
        for other, stderr in others
        if other is not None and nll is not None
    ]
    return tuple(sorted(distance for distance in found if distance is not None))


def counted(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """`near` ties among the `known` steps of a trajectory: those in which another candidate lost,
    with a known standard error.
    """
    closest = [
        min(found)
        for line in lines
        if (
            found := distances(
                line["nll"],
                (
                    (candidate["nll"], candidate.get("stderr"))
                    for candidate in line["candidates"]
                    if Removal.from_json(candidate) != Removal.from_json(line["removed"])
                ),
            )
        )
    ]
    near = sum(distance < NEAR_TIE_STDERRS for distance in closest)
    return {"known": len(closest), "near": near}
