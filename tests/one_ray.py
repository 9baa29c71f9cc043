"""How pytest-xdist shares out the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parent.parent


class OneRay(LoadFileScheduling):
    """By file, so that what a file's tests share is made once; and all files that start a Ray to
    one worker: they share one, and those that start their own meet no other. Before them, to the
    same worker, those with tokens of their own.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        path = ROOT / file
        return "ray" if starts_ray(path) or has_own_token(path) else file


@cache
def starts_ray(file: Path) -> bool:
    return "mark.ray" in file.read_text()


@cache
def has_own_token(file: Path) -> bool:
    """Whether its tests change the token that this process shows to Ray clusters, which a Ray that
    it is connected to would not accept.
    """
    return "tests.dashboard" in file.read_text()
