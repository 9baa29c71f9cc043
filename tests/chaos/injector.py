"""Makes faults strike when their time has come, and knows which of them have."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from tests.chaos.evaluators import ANY_START, Orders
from tests.chaos.plan import Fault
from workers.pool.protocol import Pool

_LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""
_PLACES = ("before the store", "after the store", "before the journal", "after the journal")
_Key = tuple[str, str, int]


class Left(Exception):
    """The loop ends here, as if its process had."""


class Injector:
    """Faults of one search after the other.

    Args:
        orders: through which evaluators are told what to do.
    """

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.pool: Pool
        self.pending: list[Fault] = []
        self.struck: dict[int, Fault] = {}  # by number
        self.open: dict[int, Fault] = {}  # orders that nobody is known to have taken
        self.victims: dict[int, int] = {}  # process of a doomed evaluator -> number of the fault
        self.leaving: tuple[Fault, str] | None = None
        self.written: set[_Key] = set()
        self._expected_rows = 0
        self._lockers: list[subprocess.Popen[bytes]] = []

    def begin(self, faults: Sequence[Fault], *, expected_rows: int) -> None:
        """A search begins, which will write so many scores."""
        self.pending, self.written, self._expected_rows = list(faults), set(), expected_rows

    def end(self) -> None:
        """The search has ended; what did not strike is pending."""
        while self._lockers:
            assert self._lockers.pop().wait(30) == 0
        if self.leaving is not None:  # the search was over before it came to that place
            self.pending.append(self.leaving[0])
            self.leaving = None

    def before_write(self, engine: sql.Engine, keys: set[_Key]) -> None:
        again = keys & self.written
        assert not again, f"scored though they are stored: {again}"
        self._strike(engine)
        self.leave("before the store")

    def after_write(self, keys: set[_Key]) -> None:
        self.written |= keys
        self.leave("after the store")

    def leave(self, place: str) -> None:
        if self.leaving is not None and self.leaving[1] == place:
            self.struck[self.leaving[0].number] = self.leaving[0]
            raise Left

    def _strike(self, engine: sql.Engine) -> None:
        """Faults whose time has come.

        Of those that concern the driver and its store, one at a time.
        """
        done = len(self.written) / self._expected_rows
        disturbed = self.leaving is not None
        for fault in list(self.pending):
            if fault.after > done:
                continue
            if fault.kind.where in ("driver", "store"):
                if disturbed:
                    continue
                disturbed = True
                self.pending.remove(fault)
                self._disturb_driver(fault, engine)
            elif self._disturb_evaluator(fault):
                self.pending.remove(fault)

    def _disturb_evaluator(self, fault: Fault) -> bool:
        """False: there is none at the moment."""
        infos = [state.info for state in self.pool.states() if state.info is not None]
        pids = [
            info.pid
            for info in infos
            if info.pid not in self.victims and Path(f"/proc/{info.pid}").exists()
        ]
        if not pids:
            return False
        pid = pids[fault.rank % len(pids)]
        if fault.kind.ends_evaluator:
            self.victims[pid] = fault.number
        if fault.kind.where == "task":
            self.open[fault.number] = fault
            self.orders.give(fault.number, pid, fault.kind.name)
            return True
        if fault.kind.where == "start":
            self.open[fault.number] = fault
            self.orders.give(fault.number, ANY_START, fault.kind.name)
        os.kill(pid, signal.SIGKILL)
        self.struck[fault.number] = fault
        return True

    def _disturb_driver(self, fault: Fault, engine: sql.Engine) -> None:
        if fault.kind.where == "driver":
            places = _PLACES[-1:] if fault.kind.name == "journal torn" else _PLACES
            self.leaving = (fault, places[int(fault.detail * len(places))])
        elif fault.kind.name == "store locked":
            file, seconds = engine.url.database, 0.4 + 1.2 * fault.detail
            locker = subprocess.Popen(
                [sys.executable, "-I", "-c", _LOCK, str(file), str(seconds)], stdout=subprocess.PIPE
            )
            assert locker.stdout is not None
            with locker.stdout as said:
                assert said.readline() == b"locked\n"
            self._lockers.append(locker)
            self.struck[fault.number] = fault
        else:
            self._fail_once(fault, engine)

    def _fail_once(self, fault: Fault, engine: sql.Engine) -> None:
        busy = fault.kind.name == "store busy"
        error = sqlite3.OperationalError("database is locked" if busy else "disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY if busy else sqlite3.SQLITE_IOERR

        def fail(cursor: Any, statement: str, *_: Any) -> None:
            if "INTO scores" in statement and fault.number not in self.struck:
                self.struck[fault.number] = fault
                raise error

        sql.event.listen(engine, "do_execute", fail)
        sql.event.listen(engine, "do_executemany", fail)

    def close_orders(self) -> list[Fault]:
        """Notes which orders were taken and takes the others back, for the next search.

        Those for a start stay until somebody starts.
        """
        back = []
        for number, fault in list(self.open.items()):
            if number not in self.orders.taken():
                if fault.kind.where == "start" or not self.orders.withdraw(number):
                    continue
                back.append(fault)
                self.victims = {
                    pid: other for pid, other in self.victims.items() if other != number
                }
            elif fault.kind.where == "task":
                self.struck[number] = fault
            del self.open[number]
        return back

    def expected(self) -> Counter[str]:
        """What the pools should report: of orders, those that were taken."""
        taken = self.orders.taken()
        found: Counter[str] = Counter()
        for number, fault in (self.struck | self.open).items():
            if fault.kind.where == "start":
                found.update(fault.kind.counted[: 2 if number in taken else 1])
            elif fault.kind.where == "process" or number in taken:
                found.update(fault.kind.counted)
        return found
