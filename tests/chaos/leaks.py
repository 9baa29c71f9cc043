"""What this process and its Ray hold: counted before and after."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray._private import state


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is held now.

    Args:
        file_descriptors: of this process.
        threads: of this process.
        evaluators: processes of actors among all descendants, and whatever descendant is stopped or
            a zombie.
        actors: that Ray believes alive.
        shared_memory: bytes that Ray's object store really uses.
        temporary_files: in this process's temporary folder.
    """

    file_descriptors: int
    threads: int
    evaluators: int
    actors: int
    shared_memory: int
    temporary_files: int

    @classmethod
    def now(cls) -> Holdings:
        me = psutil.Process()
        descendants = me.children(recursive=True)
        actors = sum(actor["State"] != "DEAD" for actor in state.actors().values())
        shared = sum(
            _shared_memory(process) for process in descendants if _name(process) == "raylet"
        )
        temporary = sum(1 for _ in Path(tempfile.gettempdir()).iterdir())
        return cls(
            me.num_fds(),
            me.num_threads(),
            sum(map(_is_evaluator, descendants)),
            actors,
            shared,
            temporary,
        )


def wait_until(true: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _is_evaluator(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "EvaluatorActor" in " ".join(process.cmdline()) or process.status() in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_ZOMBIE,
        )
    return False


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return ""


def _shared_memory(process: psutil.Process) -> int:
    """Ray takes its whole object store at once; the pages that were never written cost nothing and
    do not count here.
    """
    found = {}
    with suppress(OSError):
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                if "/dev/shm/" in str(link.readlink()):
                    status = link.stat()
                    found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())
