"""Which run of a front is the best, and why: only runs of about the same size compare, and only a
difference of at least two standard errors counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.fronts import ParetoGroup, ParetoPoint
from pipelines.runs.near_ties import NEAR_TIE_STDERRS, num_stderrs

_SAME_RATIO = 0.005
_SAME_TIME = 0.01
"""Of the longer one."""


@dataclass(frozen=True, slots=True)
class Best:
    """The run with the best value among those of about the same size, and any that is smaller and
    better still.

    Args:
        point: None where no two runs are of about the same size and none beats all others.
        near: runs that it does not beat by two standard errors, as far as these are known.
        why: in words.
    """

    point: ParetoPoint | None
    near: tuple[ParetoPoint, ...]
    why: str


def best_of(group: ParetoGroup) -> Best:
    """See `Best`."""
    if len(group.runs) == 1:
        [point] = group.runs
        value = f"{group.metric} {number_of(group, point.value)} at {_sizes(group, [point])}"
        return Best(None, (), f"{_name(point)}: {value}{_of_dense(group)}.")
    peers = _peers(group)
    rivals = [*peers, *_better_and_smaller(group, peers)]
    best = min(rivals, key=lambda point: _signed(group, point.value))
    if len(peers) == 1:
        rivals = list(group.runs)
        if any(_signed(group, point.value) < _signed(group, best.value) for point in rivals):
            names = ", ".join(_name(point) for point in rivals if point.on_front)
            none = "No two runs are of about the same size, so that none is the best"
            return Best(None, (), f"{none}. Not beaten: {names}{_of_dense(group)}.")
    others = sorted(
        (point for point in rivals if point is not best),
        key=lambda point: _signed(group, point.value),
    )
    near = tuple(
        point
        for point in others
        if (distance := _distance(best, point)) is not None and distance < NEAR_TIE_STDERRS
    )
    where = f"Of the {len(rivals)} runs at {_sizes(group, rivals)}"
    return Best(best, near, f"{where}, {_why(group, best, others, near)}")


def _why(
    group: ParetoGroup,
    best: ParetoPoint,
    others: Sequence[ParetoPoint],
    near: Sequence[ParetoPoint],
) -> str:
    what = "lowest" if group.lower_is_better else "highest"
    value = f"{group.metric}, {number_of(group, best.value)}{_of_dense(group)}"
    said = [f"{_name(best)} has the {what} {value}."]
    if near:
        names = ", ".join(map(_name, near))
        said.append(
            f"Chance may have decided: {names} {'is' if len(near) == 1 else 'are'} less than "
            f"{NEAR_TIE_STDERRS:g} standard errors away."
        )
    else:
        said.append(_next(group, best, others[0]))
    control = next((point for point in others if point.run and point.run.is_control), None)
    if best.run is not None and best.run.is_control:
        said.append(f"{best.run.key} looked at no score: nothing here is better than a control.")
    elif control is not None and control in near:
        said.append(f"{_name(control)} is a control, which looked at no score.")
    elif control is not None and not near and control is others[0]:
        said.append("That is a control, which looked at no score.")
    elif control is not None:
        said.append(_next(group, best, control, what="The best control"))
    return " ".join(said)


def _of_dense(group: ParetoGroup) -> str:
    return "" if group.dense is None else f"; dense {number_of(group, group.dense.value)}"


def _next(group: ParetoGroup, best: ParetoPoint, other: ParetoPoint, what: str = "The next") -> str:
    """By how much another one is worse."""
    distance = _distance(best, other)
    if distance is None:
        beyond = "; how much of the difference is chance is not known"
    else:
        beyond = f", {f'{distance:.1f}' if distance < 100 else 'over 100'} standard errors away"
    return f"{what}, {_name(other)}, has {number_of(group, other.value)}{beyond}."


def number_of(group: ParetoGroup, value: float) -> str:
    """As this metric is written."""
    return f"{value:,.2f}" if group.lower_is_better else f"{100 * value:.2f} %"


def _sizes(group: ParetoGroup, points: Sequence[ParetoPoint]) -> str:
    sizes = sorted({_size(group, point) for point in points}, key=float)
    both = sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{both} ms for {group.time}" if group.time else f"{both} % removed"


def _size(group: ParetoGroup, point: ParetoPoint) -> str:
    return f"{point.size:.4g}" if group.time else f"{100 * point.size:.1f}"


def _peers(group: ParetoGroup) -> list[ParetoPoint]:
    """The most runs of about the same size; of as many, the smallest models."""

    def near(anchor: ParetoPoint) -> list[ParetoPoint]:
        """Those that are not much smaller than it."""
        if group.time:
            lowest = anchor.size * (1 - _SAME_TIME)
            return [point for point in group.runs if lowest <= point.size <= anchor.size]
        highest = anchor.size + _SAME_RATIO
        return [point for point in group.runs if anchor.size <= point.size <= highest]

    return max(
        (near(anchor) for anchor in group.runs),
        key=lambda found: (len(found), max(_smallness(group, point) for point in found)),
    )


def _better_and_smaller(group: ParetoGroup, peers: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Runs that beat all of these; one that is smaller and worse is another trade."""
    least = min(_smallness(group, point) for point in peers)
    best = min(_signed(group, point.value) for point in peers)
    return [
        point
        for point in group.runs
        if point not in peers
        and _smallness(group, point) > least
        and _signed(group, point.value) < best
    ]


def _smallness(group: ParetoGroup, point: ParetoPoint) -> float:
    return -point.size if group.time else point.size


def _signed(group: ParetoGroup, value: float) -> float:
    return value if group.lower_is_better else -value


def _distance(best: ParetoPoint, other: ParetoPoint) -> float | None:
    """In standard errors: paired over the sequences of a text; of accuracies, whose documents are
    not known apart, as if these were others for each.
    """
    if best.value == other.value:
        return 0.0
    if best.nll is not None and other.nll is not None:
        if len(best.nll.nll_per_sequence) != len(other.nll.nll_per_sequence):
            return None
        stderr = other.nll.stderr_of_difference(best.nll)
        return num_stderrs(abs(other.nll.nll - best.nll.nll), stderr)
    if best.nll is not None or other.nll is not None:
        return None
    if best.stderr is None or other.stderr is None:
        return None
    return num_stderrs(abs(other.value - best.value), math.hypot(best.stderr, other.stderr))


def _name(point: ParetoPoint) -> str:
    assert point.run is not None
    return f"{point.run.key} ({point.run.short_name})"
