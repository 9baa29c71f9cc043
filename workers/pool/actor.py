"""An evaluator in a process of its own, as Ray runs it.

What it logs comes back with its answers, so that one log tells the whole story.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from pruning.errors import InputError
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
        """Makes the evaluator.

        Raises:
            InputError: it cannot be made, or could not use the GPUs that it was given.
        """
        self._check_gpus()
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

    def _check_gpus(self) -> None:
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        if not gpus or torch.cuda.is_available():
            return
        why = "sees no CUDA device" if torch.version.cuda else "is a build for CPUs"
        raise InputError(
            f"cluster.num_gpus_per_evaluator: {len(gpus)}, and an evaluator on "
            f"{ray.util.get_node_ip_address()} got GPU {','.join(gpus)}, but torch "
            f"{torch.__version__} there {why}. Install a build of torch for the GPUs on every "
            "node, or set 0 to score on CPUs"
        )


class ActorLauncher:
    """Makes an actor for an evaluator and ends it.

    Names are for people, in Ray's dashboard: each launcher has a namespace of its own, so that
    nothing that another pool calls the same is in the way.
    """

    actor: type[EvaluatorActor] = EvaluatorActor

    def __init__(self) -> None:
        self._namespace = f"multipruner-{uuid.uuid4().hex}"

    def launch(self, placement: Placement, name: str) -> Any:
        """Returns at once: Ray places the actor when there are resources."""
        actor_class: Any = ray.remote(self.actor)
        options = placement.actor_options() | {"name": name, "namespace": self._namespace}
        return actor_class.options(**options).remote()

    def kill(self, actor: Any) -> None:
        ray.kill(actor)
