"""status.json: what a search or a recovery is doing right now, for `pipelines.status` and for
whoever else watches. Written about every second, whole or not at all.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pipelines.runs.files import STATUS
from pipelines.runs.folder import RunFolder, pid_namespace
from pruning.canonical_json import dump_json
from pruning.errors import TargetNotReached
from workers.pool.protocol import EvaluatorState, Pool

log = logging.getLogger(__name__)

_EVERY_S = 1.0


class Heartbeat:
    """Collects what is known of a running search or recovery and writes it.

    Args:
        asked: what it is to reach, as the file has it.
    """

    def __init__(self, folder: RunFolder, **asked: Any) -> None:
        self._folder = folder
        self._written = 0.0
        self._warned = False
        self._fields: dict[str, Any] = {
            "state": "starting",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_namespace": pid_namespace(),
            "started": round(time.time(), 3),
            **asked,
        }

    def beat(self, pool: Pool | None = None, *, now: bool = False, **fields: Any) -> None:
        """Takes what has changed, and writes everything if the last time is a while ago.

        Args:
            now: write in any case.
        """
        self._fields |= fields
        if not now and time.monotonic() - self._written < _EVERY_S:
            return
        if pool is not None:
            self._fields |= {
                "evaluators": [_evaluator(state) for state in pool.states()],
                "recent_faults": [asdict(fault) for fault in pool.faults.recent],
                **pool.faults.counters(),
            }
        self._fields["updated"] = round(time.time(), 3)
        self._written = time.monotonic()
        try:
            self._folder.write(STATUS, dump_json(self._fields), durable=False)
        # who cannot be watched can still search; what matters is written by others, who do not
        # forgive
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written (%s)", STATUS, error)
            self._warned = True

    def beat_step(self, line: Mapping[str, Any]) -> None:
        """Takes where the search is from a line of its trajectory."""
        fields = {name: line[name] for name in ("step", "stage", "ratio", "perplexity")}
        if "unscored" in line:
            fields |= {"candidates": len(line["candidates"]), "unscored": len(line["unscored"])}
        self.beat(**fields)

    @contextmanager
    def running(self, *, reached: str = "target reached") -> Iterator[None]:
        """Says how it ended, whichever way it does.

        Args:
            reached: what is said where it ended as it should.
        """
        self.beat(now=True, state="running")
        try:
            yield
        except TargetNotReached as error:
            self.beat(now=True, state="finished", result=str(error))
            raise
        except KeyboardInterrupt:
            self.beat(now=True, state="stopped")
            raise
        except BaseException as error:
            self.beat(now=True, state="failed", result=str(error))
            raise
        self.beat(now=True, state="finished", result=reached)


def _evaluator(state: EvaluatorState) -> Mapping[str, Any]:
    where: dict[str, Any] = {}
    if state.info is not None:
        where = {
            "node": state.info.node,
            "pid": state.info.pid,
            "device": state.info.arithmetic.device,
            "gpus": list(state.info.visible_gpus),
        }
    doing = {"task": state.task, "num_tasks": state.num_tasks, "busy_s": round(state.busy_s, 1)}
    return {"number": state.number, "state": state.state} | where | doing
