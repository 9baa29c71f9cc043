"""Where evaluators go: what one of them gets, how many there are, and the Ray cluster that they run on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from pruning.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Number of evaluators and the resources of each."""

    num_evaluators: int
    num_gpus: int
    num_cpus: int = 1
    start_timeout_s: float = 600.0

    def actor_options(self) -> dict[str, Any]:
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus, "max_restarts": 0, "max_task_retries": 0}

    def describe(self) -> str:
        return f"{self.num_gpus} GPU and {self.num_cpus} CPU"


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """What this machine has, or is told to pretend to have (`num_gpus`: logical GPUs make pinning testable anywhere)."""

    num_cpus: int
    num_gpus: int
    free_bytes: int

    @classmethod
    def detect(cls, *, num_gpus: int | None = None) -> LocalMachine:
        if num_gpus is None:
            import torch

            num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, num_gpus, psutil.virtual_memory().available)


def place_locally(
    machine: LocalMachine,
    *,
    num_evaluators: int | None,
    num_gpus_per_evaluator: int | None,
    num_cpus_per_evaluator: int,
    evaluator_bytes: int,
    start_timeout_s: float,
) -> Placement:
    """One evaluator per GPU where there are GPUs, else one per core as far as memory goes.

    Raises:
        InputError: more is asked for than there is.
    """
    gpus = num_gpus_per_evaluator if num_gpus_per_evaluator is not None else min(1, machine.num_gpus)
    if gpus:
        fits = machine.num_gpus // gpus
        count = num_evaluators or fits
        if count > fits or not fits:
            asked = f"{count} evaluators with {gpus} GPU each" if num_evaluators else f"evaluators with {gpus} GPU each"
            raise InputError(
                f"cluster.num_gpus_per_evaluator, cluster.num_evaluators: {asked} asked for; this machine has {machine.num_gpus} GPU. "
                f"Ask for at most {fits} evaluators, or cluster.num_gpus_per_evaluator=0 for CPU"
            )
    else:
        fits = max(1, min(machine.num_cpus // num_cpus_per_evaluator, machine.free_bytes // evaluator_bytes))
        count = num_evaluators or fits
        if count * evaluator_bytes > machine.free_bytes:
            log.warning(
                "%d evaluators need about %.1f GB of memory each, %.1f GB are free: they may be killed. cluster.num_evaluators=%d would fit",
                count, evaluator_bytes / 1e9, machine.free_bytes / 1e9, max(1, machine.free_bytes // evaluator_bytes),
            )  # fmt: skip
    return Placement(count, gpus, num_cpus_per_evaluator, start_timeout_s)


@contextmanager
def local_ray(placement: Placement, machine: LocalMachine) -> Iterator[None]:
    """A Ray of our own on this machine for the time of the context: loopback, token authentication, no dashboard, no usage reports.

    Inside a process that is connected to a Ray already, that one is used and left alone.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # an evaluator without GPU sees none
    ray.init(
        address="local",
        num_cpus=max(machine.num_cpus, placement.num_evaluators * placement.num_cpus),
        num_gpus=machine.num_gpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=True,
    )
    try:
        yield
    finally:
        ray.shutdown()


def describe_cluster() -> str:
    """What the connected cluster has, in words."""
    resources = ray.cluster_resources()
    nodes = len([node for node in ray.nodes() if node["Alive"]])
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU on {nodes} node{'s' if nodes != 1 else ''}"
