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


def lost_by(candidate: Mapping[str, Any], nll: float | None) -> float | None:
    """Nats per token by which a candidate of a trajectory's line lost; None where its score, or
    that of the one removed, is not finite.

    Args:
        candidate: as the line has it, with a margin of its own where scores alone did not decide.
        nll: of the candidate that was removed.
    """
    if candidate["nll"] is None or nll is None:
        return None
    margin = candidate.get("margin")
    return float(candidate["nll"] - nll if margin is None else margin)


def distances(others: Iterable[tuple[float | None, float | None]]) -> tuple[float, ...]:
    """By how many standard errors each other candidate lost, where that is known, ascending.

    Args:
        others: what each other one lost by, and the standard error of that.
    """
    found = [num_stderrs(margin, stderr) for margin, stderr in others]
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
                (lost_by(candidate, line["nll"]), candidate.get("stderr"))
                for candidate in line["candidates"]
                if Removal.from_json(candidate) != Removal.from_json(line["removed"])
            )
        )
    ]
    near = sum(distance < NEAR_TIE_STDERRS for distance in closest)
    return {"known": len(closest), "near": near}
