"""How pytest-xdist shares out the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parent.parent


class OneRay(LoadFileScheduling):
    """By file, so that what a file's tests share is made once; and all files that start a Ray to
    one worker: they share one, and those that start their own meet no other.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "ray" if starts_ray(ROOT / file) else file


@cache
def starts_ray(file: Path) -> bool:
    return "mark.ray" in file.read_text()
