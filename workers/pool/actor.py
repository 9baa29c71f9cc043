"""An evaluator in a process of its own, as Ray runs it.

What it logs comes back with its answers, so that one log tells the whole story.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import ray

from pruning.importance.channel_order import ChannelOrder
from workers.cluster.placement import Placement
from workers.pool.protocol import EvaluatorKind, Spec
from workers.tasks import EvaluatorInfo, Task

_MAX_RECORDS = 100


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what was logged on the way: (level, message) each."""

    value: Any
    records: tuple[tuple[int, str], ...] = ()


class _Collector(logging.Handler):
    """Keeps what is logged until the next reply takes it along."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.kept) < _MAX_RECORDS:
            self.kept.append((record.levelno, record.getMessage()))

    def take(self) -> tuple[tuple[int, str], ...]:
        taken, self.kept = tuple(self.kept), []
        return taken


class EvaluatorActor:
    """The evaluator is made by a call, not with the actor, so that what goes wrong comes back as
    the exception that it was.
    """

    def __init__(self) -> None:
        self._records = _Collector()
        logging.getLogger().addHandler(self._records)
        for name in ("pruning", "workers"):
            logging.getLogger(name).setLevel(logging.INFO)

    def start(self, kind: EvaluatorKind, spec: Spec, order: ChannelOrder | None) -> Reply:
        self.evaluator = kind(spec, order)
        return Reply(self.describe(), self._records.take())

    def run(self, task: Task) -> Reply:
        return Reply(self.evaluator.run(task), self._records.take())

    def set_order(self, order: ChannelOrder) -> None:
        self.evaluator.set_order(order)

    def describe(self) -> EvaluatorInfo:
        context = ray.get_runtime_context()
        info = self.evaluator.describe()
        return replace(
            info,
            node=f"{info.node} ({ray.util.get_node_ip_address()})",
            node_id=context.get_node_id(),
        )


class ActorLauncher:
    """Makes an actor for an evaluator and ends it."""

    def launch(self, placement: Placement) -> Any:
        """Returns at once: Ray places the actor when there are resources."""
        actor_class: Any = ray.remote(EvaluatorActor)
        return actor_class.options(**placement.actor_options()).remote()

    def kill(self, actor: Any) -> None:
        ray.kill(actor)
