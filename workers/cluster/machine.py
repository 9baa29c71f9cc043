"""A machine: one node of a cluster, or the one that this process runs on."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pruning.errors import InputError

_DEVICES = Path("/dev")
_DRIVERS = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""Devices of NVIDIA's and AMD's drivers, and of Windows' under its Linux."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the connected cluster, with what Ray may give out there.

    A dead one has nothing.
    """

    node_id: str
    address: str
    num_cpus: int
    num_gpus: int
    memory_bytes: int
    alive: bool
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """What this machine has, or is told to pretend to have (`num_gpus`: logical GPUs make pinning
    testable anywhere).
    """

    num_cpus: int
    num_gpus: int
    free_bytes: int

    @classmethod
    def detect(cls, *, num_gpus: int | None = None) -> LocalMachine:
        if num_gpus is None:
            num_gpus = _visible_gpus()
        return cls(
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
            num_gpus,
            psutil.virtual_memory().available,
        )

    def require_cores(self, num_cpus: int) -> None:
        """For the threads of an evaluator on this machine.

        Raises:
            InputError: it has fewer.
        """
        if num_cpus > self.num_cpus:
            raise InputError(
                f"cluster.num_cpus_per_evaluator: {num_cpus}; this machine has {self.num_cpus} CPU "
                f"for this process, so give at most {self.num_cpus}"
            )

    def gpus_per_evaluator(self, asked: int | None) -> int:
        """GPUs that an evaluator gets: those asked for, else one where there are any."""
        return asked if asked is not None else min(1, self.num_gpus)

    def num_evaluators(self, *, num_gpus: int, num_cpus: int, memory_bytes: int) -> int:
        """Evaluators that fit: by GPUs where each gets some, and there may be too few for any; else
        by cores as far as memory goes, and one at least.

        Args:
            num_gpus: of each evaluator, like all others.
        """
        if num_gpus:
            return self.num_gpus // num_gpus
        return max(1, min(self.num_cpus // num_cpus, self.free_bytes // memory_bytes))


def _visible_gpus() -> int:
    """As torch counts them. Where there is no device of a driver there are none, and importing
    torch to hear that would take a second.
    """
    if sys.platform == "linux" and not any(any(_DEVICES.glob(name)) for name in _DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
