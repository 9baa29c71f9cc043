"""Which faults there are, and which of them strike when and whom: all of it from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from workers.pool.faults import FaultKind

Where = Literal["process", "task", "start", "driver", "store"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to go wrong.

    Args:
        where: `process`: an evaluator, from outside; `task`: an evaluator, in its next task;
            `start`: an evaluator is killed and the next start fails; `driver`: the search loop is
            left; `store`: the next write.
        counted: what the pool must report.
        ends_evaluator: the evaluator is replaced.
    """

    name: str
    where: Where
    counted: tuple[FaultKind, ...] = ()
    ends_evaluator: bool = False


KINDS = (
    Kind("kill", "process", ("evaluator lost",), ends_evaluator=True),
    Kind("crash", "task", ("evaluator lost",), ends_evaluator=True),
    Kind("exit", "task", ("evaluator lost",), ends_evaluator=True),
    Kind("answer lost", "task", ("evaluator lost",), ends_evaluator=True),
    Kind("exception", "task", ("task error",), ends_evaluator=True),
    Kind("stop", "task", ("late",), ends_evaluator=True),
    Kind("hang", "task", ("late",), ends_evaluator=True),
    Kind("slow", "task"),
    Kind("out of memory", "task"),
    Kind("start raises", "start", ("evaluator lost", "start failed"), ends_evaluator=True),
    Kind("start dies", "start", ("evaluator lost", "start failed"), ends_evaluator=True),
    Kind("search left", "driver"),
    Kind("driver left", "driver"),
    Kind("journal torn", "driver"),
    Kind("store locked", "store"),
    Kind("store busy", "store"),
    Kind("store broken", "store"),
)
EXPLANATIONS = {
    "kill": "SIGKILL from outside",
    "crash": "SIGSEGV in a task",
    "exit": "os._exit in a task",
    "answer lost": "SIGKILL right after the answer was computed",
    "exception": "exception in a task",
    "stop": "SIGSTOP in a task",
    "hang": "a task that never ends",
    "slow": "a task that takes 1.5 s longer",
    "out of memory": "torch.OutOfMemoryError: the batch is split",
    "start raises": "SIGKILL, and the next start raises",
    "start dies": "SIGKILL, and the next start exits",
    "search left": "loop left anywhere, rebuilt from journal and store, same pool",
    "driver left": "loop left anywhere, pool closed, all rebuilt",
    "journal torn": "loop left, last line of the journal cut short",
    "store locked": "BEGIN EXCLUSIVE of another process",
    "store busy": "`database is locked` once",
    "store broken": "`disk I/O error` once: the driver stops, all but the pool is rebuilt",
    "driver killed": "SIGKILL of a real driver with its own Ray, same command again",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault to come.

    Args:
        number: from 0; names the fault everywhere.
        after: share of its search's scores that are in the store before it strikes.
        rank: which of the evaluators that are ready then.
        detail: 0..1, whatever else there is to choose.
    """

    number: int
    kind: Kind
    after: float
    rank: int
    detail: float

    def __str__(self) -> str:
        return f"fault {self.number} ({self.kind.name})"


@dataclass(frozen=True, slots=True)
class PlannedSearch:
    """One short search: which of the settings it has, and what goes wrong in it."""

    settings: int
    faults: tuple[Fault, ...]


def draw_searches(seed: int, num_faults: int, num_settings: int) -> list[PlannedSearch]:
    """Searches with one to three faults each.

    Kinds come in shuffled decks, so that each is drawn as often as any other.
    """
    draw = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < num_faults:
        kinds += draw.sample(KINDS, len(KINDS))
    searches: list[PlannedSearch] = []
    number = 0
    while number < num_faults:
        count = min(draw.randint(1, 3), num_faults - number)
        faults = [
            Fault(
                number + place,
                kinds[number + place],
                (place + 0.7 * draw.random()) / count,
                draw.randrange(12),
                draw.random(),
            )
            for place in range(count)
        ]
        searches.append(PlannedSearch(draw.randrange(num_settings), tuple(faults)))
        number += count
    return searches


def at_once(faults: Sequence[Fault]) -> list[Fault]:
    """For faults that could not strike in their own search."""
    return [replace(fault, after=0.0) for fault in faults]
