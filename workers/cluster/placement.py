"""Where evaluators go: what each of them gets, and how many there are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pruning.errors import InputError
from workers.cluster.machine import LocalMachine, Node

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Number of evaluators and the resources of each.

    Args:
        num_evaluators: None: as many as fit, more when the cluster grows.
        memory_bytes: main memory that Ray sets aside for each; 0: none.
        label_selector: labels of the nodes that they may be on, in Ray's syntax: VALUE, !VALUE,
            in(A,B) or !in(A,B).
        start_timeout_s: how long one may take to load its model, once it has its resources.
        stall_timeout_s: how long a search waits while it has no evaluator at all.
    """

    num_evaluators: int | None
    num_gpus: int
    num_cpus: int = 1
    memory_bytes: int = 0
    label_selector: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    stall_timeout_s: float = 600.0

    def wanted(self, nodes: Sequence[Node]) -> int:
        """Evaluators that there should be on these nodes."""
        return (
            self.num_evaluators
            if self.num_evaluators is not None
            else sum(self.fits_on(node) for node in nodes if node.alive)
        )

    def fits_on(self, node: Node) -> int:
        """Evaluators that fit on one node: an evaluator never spans two."""
        if not _selected(node.labels, self.label_selector):
            return 0
        pairs = (
            (node.num_gpus, self.num_gpus),
            (node.num_cpus, self.num_cpus),
            (node.memory_bytes, self.memory_bytes),
        )
        return min((int(has // needs) for has, needs in pairs if needs), default=0)

    def fits_into(self, resources: Mapping[str, float]) -> bool:
        """Whether one would fit, were all that is free on one node."""
        needs = {"GPU": self.num_gpus, "CPU": self.num_cpus, "memory": self.memory_bytes}
        return all(resources.get(name, 0) >= count for name, count in needs.items())

    def shortfall(self, nodes: Sequence[Node]) -> str | None:
        """Why an evaluator fits on none of these nodes, even if nobody used them, and what to set;
        None if it fits on one.
        """
        alive = [node for node in nodes if node.alive]
        if any(self.fits_on(node) for node in alive):
            return None
        if alive and not any(_selected(node.labels, self.label_selector) for node in alive):
            return (
                f"each asks for {self.describe()}; nodes have {_labels(alive)}; change "
                "cluster.label_selector, or add nodes that have it"
            )
        most_gpus = max((node.num_gpus for node in alive), default=0)
        most_cpus = max((node.num_cpus for node in alive), default=0)
        advice = []
        if alive and most_gpus < self.num_gpus:
            what = "at most" if most_gpus else "to score on CPUs"
            advice.append(f"set cluster.num_gpus_per_evaluator={most_gpus} {what}")
        if 0 < most_cpus < self.num_cpus:
            advice.append(f"set cluster.num_cpus_per_evaluator={most_cpus} at most")
        advice.append("add nodes that have it")
        return f"each asks for {self.describe()}; {_offers(alive)}; {', or '.join(advice)}"

    def actor_options(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"memory": self.memory_bytes} if self.memory_bytes else {}
        if self.label_selector:
            asked["label_selector"] = dict(self.label_selector)
        return {
            "num_gpus": self.num_gpus,
            "num_cpus": self.num_cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        } | asked

    def describe(self) -> str:
        memory = f" and {self.memory_bytes / 1e9:.1f} GB of memory" if self.memory_bytes else ""
        labels = ", ".join(f"{name}: {value}" for name, value in self.label_selector.items())
        where = f" on a node with {labels}" if labels else ""
        return f"{self.num_gpus} GPU and {self.num_cpus} CPU{memory}{where}"


def _selected(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether Ray would take a node with these labels; one without a label is not of a value."""
    for name, wanted in selector.items():
        values = wanted.removeprefix("!")
        allowed = values[3:-1].split(",") if values.startswith("in(") else [values]
        if (labels.get(name) in [each.strip() for each in allowed]) == wanted.startswith("!"):
            return False
    return True


def _labels(nodes: Sequence[Node]) -> str:
    """Their labels, but those that tell nodes apart by name."""
    found = {
        f"{name}: {value}"
        for node in nodes
        for name, value in node.labels.items()
        if name != "ray.io/node-id"
    }
    return ", ".join(sorted(found)) or "no labels"


def _offers(nodes: Sequence[Node]) -> str:
    """What nodes have, those that are alike together."""
    kinds = Counter(
        f"{node.num_gpus} GPU, {node.num_cpus} CPU and {node.memory_bytes / 1e9:.1f} GB of memory"
        for node in nodes
    )
    if not kinds:
        return "the cluster has no nodes"
    return ", ".join(
        f"{count} node{'s offer' if count > 1 else ' offers'} {kind}"
        for kind, count in kinds.items()
    )


def place_locally(
    machine: LocalMachine,
    *,
    num_evaluators: int | None,
    num_gpus_per_evaluator: int | None,
    num_cpus_per_evaluator: int,
    evaluator_bytes: int,
    start_timeout_s: float,
    stall_timeout_s: float,
) -> Placement:
    """One evaluator per GPU where there are GPUs, else one per core as far as memory goes.

    Raises:
        InputError: more is asked for than there is.
    """
    gpus = machine.gpus_per_evaluator(num_gpus_per_evaluator)
    fits = machine.num_evaluators(
        num_gpus=gpus, num_cpus=num_cpus_per_evaluator, memory_bytes=evaluator_bytes
    )
    count = num_evaluators or fits
    if gpus and (count > fits or not fits):
        asked = f"{count} evaluators" if num_evaluators else "evaluators"
        raise InputError(
            f"cluster.num_gpus_per_evaluator, cluster.num_evaluators: {asked} with {gpus} GPU each "
            f"asked for; this machine has {machine.num_gpus} GPU. "
            f"Ask for at most {fits} evaluators, or cluster.num_gpus_per_evaluator=0 for CPU"
        )
    if not gpus and count * evaluator_bytes > machine.free_bytes:
        log.warning(
            "%d evaluators need about %.1f GB of memory each, %.1f GB are free: they may be "
            "killed. cluster.num_evaluators=%d would fit",
            count,
            evaluator_bytes / 1e9,
            machine.free_bytes / 1e9,
            max(1, machine.free_bytes // evaluator_bytes),
        )
    return Placement(
        count,
        gpus,
        num_cpus_per_evaluator,
        start_timeout_s=start_timeout_s,
        stall_timeout_s=stall_timeout_s,
    )
