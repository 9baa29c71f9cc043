"""Many short searches through one pool while things go wrong.

What must hold is asserted on the way.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipelines.errors import StoreUnavailable
from pipelines.prune.allocate import find_allocation
from pipelines.prune.driver import run_search
from pipelines.prune.scorer import Scorer
from pipelines.runs.files import ALLOCATION, LOCK
from pipelines.runs.folder import RunFolder
from pipelines.runs.journal import Journal
from pipelines.store.scores import Context, ScoreStore
from pruning.calibration.token_sets import Calibration, TokenSet
from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import ChannelOrder
from pruning.search.allocation_path import AllocationStrategy
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.search.strategy import Measured, Search, Strategy
from tests.chaos.evaluators import Orders, Unlucky
from tests.chaos.figures import Figures
from tests.chaos.injector import Injector, Left
from tests.chaos.leaks import Holdings, wait_until
from tests.chaos.plan import Fault, PlannedSearch, at_once
from tests.chaos.watched import Ears, WatchedJournal, WatchedPool, WatchedStore
from workers.cluster.placement import Placement
from workers.pool.inline_pool import InlinePool
from workers.pool.protocol import Pool
from workers.tasks import EvaluatorSpec, OrderTask, ScoreTask

SETTINGS: tuple[dict[str, Any], ...] = (
    {"target_ratio": 0.40, "distribution": [40, 40, 20], "mlp_group_channels": 8},
    {"target_ratio": 0.35, "distribution": [20, 60, 20], "mlp_group_channels": 6},
    {"target_ratio": 0.50, "distribution": [50, 30, 20], "mlp_group_channels": 8},
    {
        "strategy": "allocation",
        "target_ratio": 0.12,
        "distribution": [0, 1, 1],
        "mlp_group_channels": 8,
    },
)
TASK_TIMEOUT_S = 6.0
SEARCH_TIMEOUT_S = 240.0
"""A search takes a second or two; starts of evaluators on a busy machine take most of the rest."""

_TIMES = re.compile(
    rb', "seconds": [0-9.e-]+, "timestamp": [0-9.]+(, "deviating": {"halved": [0-9]+})?}$'
)
"""What differs between two runs: times, and that a batch was split, which here changes no digit."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed search in this process: what it wrote, to the byte, but for the journal's
    times.
    """

    journal: tuple[bytes, ...]
    rows: tuple[tuple[Any, ...], ...]
    num_evaluations: int


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
        self.folder, self.spec, self.planned = folder, spec, planned
        self.num_evaluators = num_evaluators
        self.figures = Figures()
        self.accounting = Accounting(spec.checkpoint.config())
        self.calibration = Calibration(
            TokenSet(spec.token_sets["block"]), TokenSet(spec.token_sets["width"]), None
        )
        orders = Orders(spec.checkpoint.folder)
        orders.prepare()
        self.injector = Injector(orders)
        self.ears = Ears()
        self.pools: list[WatchedPool] = []
        # faults of evaluators whose pool was closed before it could see them
        self.unnoticed: Counter[str] = Counter()
        self.usual_s: dict[int, float] = {}
        self._deadline = 0.0

    @property
    def pool(self) -> WatchedPool:
        return self.pools[-1]

    def run(self) -> Figures:
        started = time.monotonic()
        self.folder.mkdir(parents=True)
        logging.getLogger().addHandler(self.ears)
        try:
            # so that a lock of a second is waited for by trying again, as one of a minute is
            with patch("pipelines.store.scores.SQLITE_TIMEOUT_S", 0.2):
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
        for index in 2 * [*range(len(SETTINGS))]:  # the first time task times are not known
            self.usual_s[index] = self._search(
                f"usual-{index}-{index in self.usual_s}", PlannedSearch(index, ()), []
            )
        self.figures.holdings.append(("before", Holdings.now()))
        late: list[Fault] = []
        for number, planned in enumerate(self.planned):
            late = self._disturbed(f"search-{number}", planned, late)
        extra = 0
        while late or self.injector.open:
            assert extra < 30, f"nobody took the orders for {late} {self.injector.open}"
            late = self._disturbed(f"extra-{extra}", PlannedSearch(extra % len(SETTINGS), ()), late)
            extra += 1
        self._settle()
        self._close_pool()
        self._check_end()

    def _reference(self, index: int, pool: InlinePool) -> Reference:
        folder = self.folder / f"reference-{index}"
        folder.mkdir()
        journal = Journal(folder / "trajectory.jsonl")
        with ScoreStore(f"sqlite:///{folder}/scores.db") as store:
            scorer = self._drive(index, journal, store, pool)
        stages = {line["stage"] for line in journal.lines}
        every = {"block", "mlp_channels", "attention_heads"}
        assert stages == every if "strategy" not in SETTINGS[index] else "mlp_channels" in stages
        return Reference(
            _without_times(journal.path), _rows(folder / "scores.db"), scorer.num_scored
        )

    def _strategy(self, index: int) -> Strategy:
        settings = SearchSettings.resolved(
            self.accounting.geometry, head_group_channels=16, **SETTINGS[index]
        )
        return strategy_of(settings)

    def _new_search(self, index: int, scorer: Scorer, folder: Path) -> Search:
        """A search where it begins; one that allocates measures first, or finds that it has."""
        strategy, measured = self._strategy(index), Measured()
        if isinstance(strategy, AllocationStrategy):
            with RunFolder(folder) as run_folder:
                measured["allocation"] = find_allocation(
                    strategy.measuring(self.accounting),
                    scorer,
                    run_folder,
                    on_wave=lambda _name, _count: None,
                )
        return strategy.search(self.accounting, measured)

    def _drive(self, index: int, journal: Journal, store: ScoreStore, pool: Pool) -> Scorer:
        spec = self.spec
        context = Context(
            model="tiny",
            tokens="",
            order=self.order.fingerprint,
            dtype=spec.dtype,
            batch_size=spec.batch_size,
            arithmetic=pool.arithmetic,
        )
        scorer = Scorer(pool, store, self.calibration, context, self._on_evaluation)
        search = self._new_search(index, scorer, journal.path.parent)
        journal.replay(search)
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
                f"the search does not end; {self.pool.states()}; pending "
                f"{self.injector.pending}, open {self.injector.open}, faults {self.pool.faults}"
            )

    def _disturbed(self, name: str, planned: PlannedSearch, late: Sequence[Fault]) -> list[Fault]:
        """One search with its faults, and those that came too late in the one before.

        Returns those that came too late in this one.
        """
        before = len(self.injector.struck)
        seconds = self._search(name, planned, [*at_once(late), *planned.faults])
        back = self.injector.close_orders()
        struck = list(self.injector.struck.values())[before:]
        sys.stdout.write(
            f"{name}: {', '.join(map(str, struck)) or 'nothing'}; {seconds:.1f} s, "
            f"{self.pool.num_evaluators} evaluators\n"
        )
        for fault in struck:
            effect = self.figures.effects[fault.kind.name]
            effect.injected += 1
            effect.seconds += (seconds - self.usual_s[planned.settings]) / len(struck)
        return [*back, *self.injector.pending]

    def _search(self, name: str, planned: PlannedSearch, faults: Sequence[Fault]) -> float:
        """One search until its end, by as many drivers as it takes. Seconds."""
        reference, folder = self.references[planned.settings], self.folder / name
        folder.mkdir()
        self.injector.begin(faults, expected_rows=reference.num_evaluations)
        started = time.monotonic()
        self._deadline = started + SEARCH_TIMEOUT_S
        while not self._drove_to_the_end(folder, planned.settings):
            continue
        seconds = time.monotonic() - started
        self.injector.end()
        assert _without_times(folder / "trajectory.jsonl") == reference.journal, (
            f"{folder}: another trajectory, after {faults}"
        )
        assert _rows(folder / "scores.db") == reference.rows, (
            f"{folder}: other scores, after {faults}"
        )
        assert len(self.injector.written) == reference.num_evaluations
        files = {"scores.db", "scores.db.lock", "trajectory.jsonl"}
        if "strategy" in SETTINGS[planned.settings]:
            files |= {ALLOCATION, LOCK}
        assert {path.name for path in folder.iterdir()} == files
        too_many = self._counted() - self.injector.expected()
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
        journal = WatchedJournal(folder / "trajectory.jsonl", self.injector)
        try:
            with WatchedStore(f"sqlite:///{folder}/scores.db", self.injector) as store:
                self._drive(settings, journal, store, self.pool)
        except Left:
            assert self.injector.leaving is not None
            fault, _ = self.injector.leaving
        except StoreUnavailable as error:
            fault = next(reversed(self.injector.struck.values()))
            if fault.kind.name != "store broken" or "disk I/O error" not in str(error):
                raise
        else:
            return True
        self.injector.leaving = None
        self.figures.effects[fault.kind.name].drivers += 1
        if fault.kind.name == "journal torn":
            _tear(journal.path, fault.detail)
        if fault.kind.name == "driver left":
            self._close_pool()
            self._open_pool()
        return False

    # The pool, and what it must have seen.

    def _open_pool(self) -> None:
        placement = Placement(self.num_evaluators, num_gpus=0, stall_timeout_s=SEARCH_TIMEOUT_S)
        pool = WatchedPool(self.spec, placement, task_timeout_s=TASK_TIMEOUT_S, kind=Unlucky)
        self.pools.append(pool)
        self.injector.pool = pool
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
        back, pending = self.injector.close_orders(), self.injector.pending
        pending += [fault for fault in back if fault not in pending]
        self.unnoticed += self.injector.expected() - self._counted() - self.unnoticed
        self.figures.evaluators += self.pool._num_started
        self.figures.lost_evaluations += self.pool.faults.num_lost_evaluations
        self.figures.speculative_tasks += self.pool.faults.num_speculative_tasks
        for pid, lost in self.pool.lost.items():
            if pid in self.injector.victims:
                self.figures.effects[
                    self.injector.struck[self.injector.victims[pid]].kind.name
                ].retried += lost

    def _counted(self) -> Counter[str]:
        return sum((pool.faults.counts for pool in self.pools), Counter())

    def _settle(self) -> None:
        """Works on until the pool has seen everything and is whole again."""
        until = time.monotonic() + SEARCH_TIMEOUT_S
        shape = self.accounting.dense
        removals = self._strategy(0).search(self.accounting, {}).propose()
        while (
            self.injector.expected() - self.unnoticed - self._counted()
            or self.pool.num_evaluators < self.num_evaluators
        ):
            assert time.monotonic() < until, (
                f"{self.injector.expected()} injected, {self.unnoticed} unnoticed, "
                f"{self._counted()} reported; {self.pool.states()}"
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
        assert sorted(self.injector.struck) == [fault.number for fault in injected], (
            "some faults never struck"
        )
        seen = self.injector.expected() - self.unnoticed
        missing, too_many = seen - self._counted(), self._counted() - seen
        del too_many["late"]
        assert not missing, f"injected and not reported: {missing}"
        assert not too_many, f"reported and not injected: {too_many}"
        names = Counter(fault.kind.name for fault in injected)
        assert self.ears.retries == names["store locked"] + names["store busy"]
        assert (
            names["out of memory"] - names["driver left"]
            <= self.ears.oom_splits
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
    """All scores, in whatever way their batches were run."""
    connection = sqlite3.connect(path)
    try:
        return tuple(
            connection.execute(
                "select distinct shape, json_remove(description, '$.halved'), batch, nll, "
                "num_tokens from scores join contexts on context = digest order by 1, 2, 3"
            )
        )
    finally:
        connection.close()


def _tear(path: Path, share: float) -> None:
    """Cuts the last line short: by its newline at least, to nothing at most."""
    data = path.read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    os.truncate(path, len(data) - 1 - int(share * (last - 1)))
