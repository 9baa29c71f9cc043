"""What is wrong with the points of a grid, told all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipelines.config.grid import Point
from pipelines.config.search import SearchConfig
from pruning.errors import InputError

_Made = TypeVar("_Made")


class PointProblems:
    """The problems of some of these points; what is wrong with all is said without their names."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._names = [point.name for point in points]
        self._found: dict[str, list[str]] = {}

    def add(self, point: Point, error: InputError) -> None:
        """What is wrong with one."""
        for problem in str(error).splitlines():
            self._found.setdefault(problem, []).append(point.name)

    def add_unused(self, searches: Sequence[SearchConfig], given: Sequence[str]) -> None:
        """Options that do nothing in any point; in some of them is enough.

        Args:
            searches: of all points; not read where a point has a problem already.
            given: names of the options that all points have in common.
        """
        if self._found:
            return
        found = [search.problems_of_new(given) for search in searches]
        for problem in found[0]:
            if all(any(_option(other) == _option(problem) for other in rest) for rest in found):
                self._found[problem] = self._names

    def check(self) -> None:
        """Call it when everything was added.

        Raises:
            InputError: with all of them.
        """
        if self._found:
            raise InputError(
                "\n".join(
                    problem if names == self._names else f"{problem} (point {', '.join(names)})"
                    for problem, names in self._found.items()
                )
            )


def of_all(points: Sequence[Point], make: Callable[[Point], _Made]) -> list[_Made]:
    """What is made of each.

    Raises:
        InputError: what is wrong with any of them, all at once.
    """
    problems, made = PointProblems(points), list[_Made]()
    for point in points:
        try:
            made.append(make(point))
        except InputError as error:
            problems.add(point, error)
    problems.check()
    return made


def _option(problem: str) -> str:
    return problem.partition(":")[0]
