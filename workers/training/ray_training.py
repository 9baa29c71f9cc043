"""The training in a process that Ray Train starts, and starts again where it is lost.

Checkpoints are our own, in the folder of the recovery, which that process must see: a process that
takes over goes on from the last.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pruning.errors import InputError
from pruning.recovery.journal import JOURNAL, StoppedBy, checkpoint_steps, ended, read_journal
from workers.cluster.placement import Placement
from workers.training.trainer import TrainingFailed, TrainingSpec, Watch, train

_LOSSES = 5
"""Processes that may be lost before it is given up."""
_LOOK_EVERY_S = 0.5
_REFUSED = "refused"
"""What the process says of input that cannot be used: Ray Train would start it again and again."""


def train_on_ray(spec: TrainingSpec, folder: Path, watch: Watch, placement: Placement) -> StoppedBy:
    """The same as `train`, in one process on the connected Ray.

    Args:
        placement: what the process gets.

    Raises:
        InputError: as of `train`.
        TrainingFailed: the process was lost too often.
    """
    running = _Running(spec, folder, placement)
    try:
        while running.is_alive():
            running.join(_LOOK_EVERY_S)
            _look(folder, watch)
        if running.problem:
            raise TrainingFailed(running.problem)
        if (refused := running.storage / _REFUSED).exists():
            raise InputError(refused.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(running.storage, ignore_errors=True)
    lines = read_journal(folder / JOURNAL)
    return (ended(lines, spec.settings) if lines else None) or "not_finite"


def _look(folder: Path, watch: Watch) -> None:
    """What the process has written by now. A line that is being written is seen the next time."""
    num_saved = max(checkpoint_steps(folder), default=-1) + 1
    with contextlib.suppress(InputError):
        lines = read_journal(folder / JOURNAL)
        if lines and num_saved <= len(lines):
            watch(lines, num_saved)


class _Running(threading.Thread):
    """Ray Train at work, in a thread, so that signals stay with the command."""

    def __init__(self, spec: TrainingSpec, folder: Path, placement: Placement) -> None:
        super().__init__(name="training", daemon=True)
        self.storage = Path(tempfile.mkdtemp(prefix=".ray-", dir=folder))
        self.problem = "Ray Train ended without a word"
        resources: dict[str, float] = {"CPU": placement.num_cpus, "GPU": placement.num_gpus}
        if placement.memory_bytes:
            resources["memory"] = placement.memory_bytes
        # The class that TorchTrainer is made of, without the process group that it opens: one
        # process needs none, and it would listen on every interface.
        self._trainer = DataParallelTrainer(
            _train_loop,
            train_loop_config={
                "spec": spec,
                "folder": folder,
                "num_gpus": placement.num_gpus,
                "refused": self.storage / _REFUSED,
            },
            scaling_config=ScalingConfig(
                num_workers=1, use_gpu=placement.num_gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(  # type: ignore[arg-type]  # older annotation
                name="recovery",
                storage_path=str(self.storage),
                failure_config=FailureConfig(max_failures=_LOSSES),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
            self.problem = ""
        except TrainingFailedError as error:
            self.problem = str(error).strip().splitlines()[-1]
        except Exception as error:  # noqa: BLE001 - it would end with the thread, unseen
            self.problem = f"{type(error).__name__}: {error}"


def _train_loop(config: Mapping[str, Any]) -> None:
    """In the process of Ray Train."""
    try:
        train(config["spec"], config["folder"], lambda *_: None, num_gpus=config["num_gpus"])
    except InputError as error:
        config["refused"].write_text(str(error), encoding="utf-8")
