"""Many short searches through one pool while things go wrong.

What must hold is asserted on the way.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy as sql

from pipelines.errors import StoreUnavailable
from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.journal import Journal
from pipelines.store.scores import BatchScore, Context, ScoreStore
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import ChannelOrder
from pruning.search.greedy import GreedySearch
from pruning.search.stages import make_stages
from tests.chaos.evaluators import ANY_START, Orders, Unlucky
from tests.chaos.leaks import Holdings, wait_until
from tests.chaos.plan import Fault, PlannedSearch, at_once
from workers.cluster.placement import Placement
from workers.pool.inline_pool import InlinePool
from workers.pool.protocol import Pool
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, OrderTask, ScoreTask

SETTINGS: tuple[dict[str, Any], ...] = (
    {"target_ratio": 0.40, "distribution": [40, 40, 20], "mlp_group_channels": 8},
    {"target_ratio": 0.35, "distribution": [20, 60, 20], "mlp_group_channels": 6},
    {"target_ratio": 0.50, "distribution": [50, 30, 20], "mlp_group_channels": 8},
)
TASK_TIMEOUT_S = 6.0
SEARCH_TIMEOUT_S = 240.0
"""A search takes a second or two; starts of evaluators on a busy machine take most of the rest."""

_LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""
_TIMES = re.compile(rb', "seconds": [0-9.e-]+, "timestamp": [0-9.]+}$')
_Key = tuple[str, str, int]


class Left(Exception):
    """The loop ends here, as if its process had."""


class WatchedPool(RayPool):
    """Knows which evaluator lost how many candidates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lost: Counter[int] = Counter()
        super().__init__(*args, **kwargs)

    def _task_failed(self, worker: Any, *args: Any) -> None:
        before = self.faults.num_lost_evaluations
        try:
            super()._task_failed(worker, *args)
        finally:
            self.lost[worker.info.pid] += self.faults.num_lost_evaluations - before


class WatchedStore(ScoreStore):
    def __init__(self, url: str, chaos: Chaos) -> None:
        self._chaos = chaos
        super().__init__(url)

    def add(self, context: Context, scores: Mapping[tuple[str, int], BatchScore]) -> None:
        keys = {(context.digest, *key) for key in scores}
        self._chaos.before_write(self._database._engine, keys)
        super().add(context, scores)
        self._chaos.after_write(keys)


class WatchedJournal(Journal):
    def __init__(self, path: Path, chaos: Chaos) -> None:
        self._chaos = chaos
        super().__init__(path)

    def append(self, line: dict[str, Any]) -> None:
        self._chaos.leave("before the journal")
        super().append(line)
        self._chaos.leave("after the journal")


class Ears(logging.Handler):
    """Counts what the product says about the faults that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.retries = self.halved = 0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.retries += "trying again for up to" in message
        self.halved += "scoring them in two halves" in message


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed search in this process: what it wrote, to the byte, but for the journal's
    times.
    """

    journal: tuple[bytes, ...]
    rows: tuple[tuple[Any, ...], ...]
    num_evaluations: int


@dataclass(slots=True)
class Effect:
    """Of all faults of one kind."""

    injected: int = 0
    retried: int = 0
    replaced: int = 0
    drivers: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Figures:
    """What a whole run came to."""

    effects: defaultdict[str, Effect] = field(default_factory=lambda: defaultdict(Effect))
    searches: int = 0
    steps: int = 0
    evaluations: int = 0
    lost_evaluations: int = 0
    speculative_tasks: int = 0
    evaluators: int = 0
    seconds: float = 0.0
    holdings: list[tuple[str, Holdings]] = field(default_factory=list)


class Chaos:
    """Runs searches with faults in them.

    Args:
        folder: gets a folder for each search.
        spec: on a copy of the checkpoint of its own: evaluators find their orders beside it.
        planned: what to run, from `draw_searches`.
    """

    def __init__(
        self,
        folder: Path,
        spec: EvaluatorSpec,
        planned: Sequence[PlannedSearch],
        num_evaluators: int,
    ) -> None:
        self.folder, self.spec, self.planned, self.num_evaluators = (
            folder,
            spec,
            planned,
            num_evaluators,
        )
        self.figures = Figures()
        self.accounting = Accounting(spec.checkpoint.config())
        self.calibration = Calibration(
            TokenSet(spec.token_sets["block"]), TokenSet(spec.token_sets["width"]), None
        )
        self.orders = Orders(spec.checkpoint.folder)
        self.orders.prepare()
        self.ears = Ears()
        self.pools: list[WatchedPool] = []
        self.struck: dict[int, Fault] = {}  # by number
        self.victims: dict[
            int, int
        ] = {}  # process of an evaluator that was doomed -> number of the fault
        self.open: dict[int, Fault] = {}  # orders that nobody is known to have taken
        self.unnoticed: Counter[str] = (
            Counter()
        )  # faults of evaluators whose pool was closed before it could see them
        self.pending: list[Fault] = []
        self.leaving: tuple[Fault, str] | None = None
        self.written: set[_Key] = set()
        self.expected_rows = 0
        self.usual_s: dict[int, float] = {}
        self._lockers: list[subprocess.Popen[bytes]] = []
        self._deadline = 0.0

    @property
    def pool(self) -> WatchedPool:
        return self.pools[-1]

    def run(self) -> Figures:
        started = time.monotonic()
        self.folder.mkdir(parents=True)
        logging.getLogger().addHandler(self.ears)
        try:
            with patch(
                "pipelines.store.scores.SQLITE_TIMEOUT_S", 0.2
            ):  # so that a lock of a second is waited for by trying again, as one of a minute is
                self._run()
        finally:
            logging.getLogger().removeHandler(self.ears)
            if self.pools:
                self.pool.close()
        self.figures.seconds = time.monotonic() - started
        return self.figures

    def _run(self) -> None:
        inline = InlinePool(self.spec)
        self.order = _find_order(inline)
        inline.set_order(self.order)
        self.references = [self._reference(index, inline) for index in range(len(SETTINGS))]
        self._open_pool()
        self.pool.describe()
        for index in (
            *range(len(SETTINGS)),
            *range(len(SETTINGS)),
        ):  # the first time costs are not known
            self.usual_s[index] = self._search(
                f"usual-{index}-{index in self.usual_s}", PlannedSearch(index, ()), []
            )
        self.figures.holdings.append(("before", Holdings.now()))
        late: list[Fault] = []
        for number, planned in enumerate(self.planned):
            late = self._disturbed(f"search-{number}", planned, late)
        extra = 0
        while late or self.open:
            assert extra < 30, f"nobody took the orders for {late} {self.open}"
            late = self._disturbed(f"extra-{extra}", PlannedSearch(extra % len(SETTINGS), ()), late)
            extra += 1
        self._settle()
        self._close_pool()
        self._check_end()

    def _reference(self, index: int, pool: InlinePool) -> Reference:
        folder = self.folder / f"reference-{index}"
        folder.mkdir()
        search, journal = self._new_search(index), Journal(folder / "trajectory.jsonl")
        with ScoreStore(f"sqlite:///{folder}/scores.db") as store:
            scorer = self._drive(search, journal, store, pool)
        assert {step.stage for step in search.steps} == {"block", "mlp_channels", "attention_heads"}
        return Reference(
            _without_times(journal.path), _rows(folder / "scores.db"), scorer.num_scored
        )

    def _new_search(self, index: int) -> GreedySearch:
        return GreedySearch(
            self.accounting, make_stages(self.accounting, head_group_channels=16, **SETTINGS[index])
        )

    def _drive(
        self, search: GreedySearch, journal: Journal, store: ScoreStore, pool: Pool
    ) -> Scorer:
        spec = self.spec
        context = Context(
            "tiny",
            "",
            self.order.fingerprint,
            spec.dtype,
            pool.device,
            spec.batch_size,
            spec.num_threads,
        )
        scorer = Scorer(pool, store, self.calibration, context, self._on_evaluation)
        run_search(
            search,
            scorer,
            journal,
            accounting=self.accounting,
            context_length=32,
            on_step=lambda _: None,
        )
        return scorer

    def _on_evaluation(self, candidates: float, *, scored: bool) -> None:
        """Called about every second: a search that does not come to an end is stopped here."""
        if self.pools and time.monotonic() > self._deadline:
            raise TimeoutError(
                f"the search does not end; {self.pool.states()}; pending {self.pending}, open "
                f"{self.open}, faults {self.pool.faults}"
            )

    def _disturbed(self, name: str, planned: PlannedSearch, late: Sequence[Fault]) -> list[Fault]:
        """One search with its faults, and those that came too late in the one before.

        Returns those that came too late in this one.
        """
        before = len(self.struck)
        seconds = self._search(name, planned, [*at_once(late), *planned.faults])
        back = self._close_orders()
        struck = list(self.struck.values())[before:]
        sys.stdout.write(
            f"{name}: {', '.join(map(str, struck)) or 'nothing'}; {seconds:.1f} s, "
            f"{self.pool.num_evaluators} evaluators\n"
        )
        for fault in struck:
            effect = self.figures.effects[fault.kind.name]
            effect.injected += 1
            effect.seconds += (seconds - self.usual_s[planned.settings]) / len(struck)
        return [*back, *self.pending]

    def _search(self, name: str, planned: PlannedSearch, faults: Sequence[Fault]) -> float:
        """One search until its end, by as many drivers as it takes. Seconds."""
        reference, folder = self.references[planned.settings], self.folder / name
        folder.mkdir()
        self.pending, self.written, self.expected_rows = (
            list(faults),
            set(),
            reference.num_evaluations,
        )
        started = time.monotonic()
        self._deadline = started + SEARCH_TIMEOUT_S
        while not self._drove_to_the_end(folder, planned.settings):
            continue
        seconds = time.monotonic() - started
        while self._lockers:
            assert self._lockers.pop().wait(30) == 0
        assert _without_times(folder / "trajectory.jsonl") == reference.journal, (
            f"{folder}: another trajectory, after {faults}"
        )
        assert _rows(folder / "scores.db") == reference.rows, (
            f"{folder}: other scores, after {faults}"
        )
        assert len(self.written) == reference.num_evaluations
        assert sorted(path.name for path in folder.iterdir()) == [
            "scores.db",
            "scores.db.lock",
            "trajectory.jsonl",
        ]
        if self.leaving is not None:  # the search was over before it came to that place
            self.pending.append(self.leaving[0])
            self.leaving = None
        too_many = self._counted() - self._expected()
        del too_many["late"]  # a busy machine can make one
        assert not too_many, (
            f"{folder}: the pool reports what was not injected: {too_many}; {self.pool.faults}"
        )
        self.figures.searches += 1
        self.figures.steps += len(reference.journal)
        self.figures.evaluations += reference.num_evaluations
        return seconds

    def _drove_to_the_end(self, folder: Path, settings: int) -> bool:
        """One driver: everything but the pool is new, and goes on from journal and store."""
        search, journal = (
            self._new_search(settings),
            WatchedJournal(folder / "trajectory.jsonl", self),
        )
        journal.replay(search)
        try:
            with WatchedStore(f"sqlite:///{folder}/scores.db", self) as store:
                self._drive(search, journal, store, self.pool)
        except Left:
            assert self.leaving is not None
            fault, _ = self.leaving
        except StoreUnavailable as error:
            fault = next(reversed(self.struck.values()))
            if fault.kind.name != "store broken" or "disk I/O error" not in str(error):
                raise
        else:
            return True
        self.leaving = None
        self.figures.effects[fault.kind.name].drivers += 1
        if fault.kind.name == "journal torn":
            _tear(journal.path, fault.detail)
        if fault.kind.name == "driver left":
            self._close_pool()
            self._open_pool()
        return False

    # What the store and the journal of the search tell of.

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
        done = len(self.written) / self.expected_rows
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
            places = (
                ("after the journal",)
                if fault.kind.name == "journal torn"
                else (
                    "before the store",
                    "after the store",
                    "before the journal",
                    "after the journal",
                )
            )
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

    # The pool, and what it must have seen.

    def _open_pool(self) -> None:
        placement = Placement(self.num_evaluators, num_gpus=0, stall_timeout_s=SEARCH_TIMEOUT_S)
        self.pools.append(
            WatchedPool(self.spec, placement, task_timeout_s=TASK_TIMEOUT_S, kind=Unlucky)
        )
        until = time.monotonic() + SEARCH_TIMEOUT_S
        for _ in self.pool.wait():
            assert time.monotonic() < until, self.pool.states()
        self.pool.set_order(self.order)

    def _close_pool(self) -> None:
        """What its evaluators had done to them and it had not noticed yet, nobody will report."""
        self.pool.close()
        assert wait_until(lambda: Holdings.now().evaluators == 0, 60), (
            "evaluators are left after the pool closed"
        )
        self.pending += [fault for fault in self._close_orders() if fault not in self.pending]
        self.unnoticed += self._expected() - self._counted() - self.unnoticed
        self.figures.evaluators += self.pool._num_started
        self.figures.lost_evaluations += self.pool.faults.num_lost_evaluations
        self.figures.speculative_tasks += self.pool.faults.num_speculative_tasks
        for pid, lost in self.pool.lost.items():
            if pid in self.victims:
                self.figures.effects[self.struck[self.victims[pid]].kind.name].retried += lost

    def _close_orders(self) -> list[Fault]:
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

    def _expected(self) -> Counter[str]:
        """What the pools should report: of orders, those that were taken."""
        taken = self.orders.taken()
        found: Counter[str] = Counter()
        for number, fault in (self.struck | self.open).items():
            if fault.kind.where == "start":
                found.update(fault.kind.counted[: 2 if number in taken else 1])
            elif fault.kind.where == "process" or number in taken:
                found.update(fault.kind.counted)
        return found

    def _counted(self) -> Counter[str]:
        return sum((pool.faults.counts for pool in self.pools), Counter())

    def _settle(self) -> None:
        """Works on until the pool has seen everything and is whole again."""
        until = time.monotonic() + SEARCH_TIMEOUT_S
        shape = self.accounting.dense
        removals = self._new_search(0).propose()
        while (
            self._expected() - self.unnoticed - self._counted()
            or self.pool.num_evaluators < self.num_evaluators
        ):
            assert time.monotonic() < until, (
                f"{self._expected()} injected, {self.unnoticed} unnoticed, {self._counted()} "
                f"reported; {self.pool.states()}"
            )
            for _ in self.pool.run(
                [
                    ScoreTask("block", batch, shape.text, removals, self.order.fingerprint)
                    for batch in range(4)
                ]
            ):
                assert time.monotonic() < until

    def _check_end(self) -> None:
        injected = [fault for planned in self.planned for fault in planned.faults]
        assert sorted(self.struck) == [fault.number for fault in injected], (
            "some faults never struck"
        )
        seen = self._expected() - self.unnoticed
        missing, too_many = seen - self._counted(), self._counted() - seen
        del too_many["late"]
        assert not missing, f"injected and not reported: {missing}"
        assert not too_many, f"reported and not injected: {too_many}"
        names = Counter(fault.kind.name for fault in injected)
        assert self.ears.retries == names["store locked"] + names["store busy"]
        assert (
            names["out of memory"] - names["driver left"]
            <= self.ears.halved
            <= names["out of memory"]
        ), "a closed pool tells nothing of its last tasks"
        for fault in injected:
            self.figures.effects[fault.kind.name].replaced += fault.kind.ends_evaluator
        self.figures.holdings.append(("after", Holdings.now()))


def _find_order(pool: Pool) -> ChannelOrder:
    [order] = [result for answers in pool.run([OrderTask("l1")]) for _, result in answers]
    assert isinstance(order, ChannelOrder)
    return order


def _without_times(path: Path) -> tuple[bytes, ...]:
    lines = [_TIMES.subn(b"}", line) for line in path.read_bytes().splitlines()]
    assert all(count == 1 for _, count in lines)
    return tuple(line for line, _ in lines)


def _rows(path: Path) -> tuple[tuple[Any, ...], ...]:
    connection = sqlite3.connect(path)
    try:
        return tuple(
            connection.execute(
                "select shape, context, batch, nll, num_tokens from scores order by 1, 2, 3"
            )
        )
    finally:
        connection.close()


def _tear(path: Path, share: float) -> None:
    """Cuts the last line short: by its newline at least, to nothing at most."""
    data = path.read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    os.truncate(path, len(data) - 1 - int(share * (last - 1)))
