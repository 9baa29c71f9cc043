"""Pool, store, journal and log of a search, which tell what they do."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.runs.journal import Journal
from pipelines.store.scores import Context, ScoreStore
from pruning.scoring.score import BatchScore
from tests.chaos.injector import Injector
from workers.pool.ray_pool import RayPool


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
    def __init__(self, url: str, injector: Injector) -> None:
        self._injector = injector
        super().__init__(url)

    def add(self, context: Context, scores: Mapping[tuple[str, int], BatchScore]) -> None:
        keys = {(context.digest, *key) for key in scores}
        self._injector.before_write(self._database._engine, keys)
        super().add(context, scores)
        self._injector.after_write(keys)


class WatchedJournal(Journal):
    def __init__(self, path: Path, injector: Injector) -> None:
        self._injector = injector
        super().__init__(path)

    def append(self, line: dict[str, Any]) -> None:
        self._injector.leave("before the journal")
        super().append(line)
        self._injector.leave("after the journal")


class Ears(logging.Handler):
    """Counts what the product says about the faults that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.retries = self.oom_splits = 0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.retries += "trying again for up to" in message
        self.oom_splits += "scoring them in two halves" in message
