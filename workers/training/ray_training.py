"""The training in processes that Ray Train starts, and starts again where one is lost.

Checkpoints are our own, in the folder of the recovery, which every process must see: those that
take over go on from the last. As their number changes no bit of what is trained, they may be fewer
or more than those before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import train as ray_train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import distributed

from pruning.errors import InputError
from pruning.recovery.journal import JOURNAL, StoppedBy, checkpoint_steps, ended, read_journal
from pruning.recovery.team import Team
from workers.cluster.placement import Placement
from workers.cluster.resources import nodes
from workers.pool.faults import WorkersLost
from workers.pool.stall import StallWatch
from workers.training.trainer import TrainingFailed, TrainingSpec, Watch, train

_LOSSES = 5
"""Processes that may be lost before it is given up."""
_LOOK_EVERY_S = 0.5
_REFUSED = "refused"
"""What a process says of input that cannot be used: Ray Train would start it again and again."""
_STARTED = "started"
"""Written by the first process that Ray Train has found a place for."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def train_on_ray(spec: TrainingSpec, folder: Path, watch: Watch, placement: Placement) -> StoppedBy:
    """The same as `train`, in processes on the connected Ray.

    Args:
        placement: how many there are at most, and what each gets. There are no more than an update
            has parts.

    Raises:
        InputError: as of `train`.
        TrainingFailed: processes were lost too often, or none got what it asks for in
            `placement.stall_timeout_s`.
    """
    running, stall = _Running(spec, folder, placement), StallWatch(placement)
    try:
        while running.is_alive():
            running.join(_LOOK_EVERY_S)
            if not (running.storage / _STARTED).exists():
                stall.look_at(nodes())
                stall.check(())
            _look(folder, watch)
        if running.problem:
            raise TrainingFailed(running.problem)
        if (refused := running.storage / _REFUSED).exists():
            raise InputError(refused.read_text(encoding="utf-8"))
    except WorkersLost as error:
        raise TrainingFailed(str(error).removeprefix("cluster: ")) from error
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
        count = min(placement.num_evaluators or spec.settings.num_parts, spec.settings.num_parts)
        alive = [node for node in nodes() if node.alive]
        # Of one machine that has room for all it is known that they can start; where nodes come and
        # go, fewer are better than to wait for one that is gone.
        is_sure = (
            placement.num_evaluators and len(alive) == 1 and placement.fits_on(*alive) >= count
        )
        # The class that TorchTrainer is made of, without the process group that it opens, which
        # listens on every interface: see `_team`.
        self._trainer = DataParallelTrainer(
            _train_loop,
            train_loop_config={
                "spec": spec,
                "folder": folder,
                "num_gpus": placement.num_gpus,
                "storage": self.storage,
            },
            scaling_config=ScalingConfig(
                num_workers=count if is_sure else (1, count),
                use_gpu=placement.num_gpus > 0,
                resources_per_worker=resources,
                label_selector=dict(placement.label_selector) or None,
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
    """In each process of Ray Train."""
    storage: Path = config["storage"]
    (storage / _STARTED).touch()
    if (refused := storage / _REFUSED).exists():
        return  # by another process, before this one was started again
    try:
        with _team(storage, config["num_gpus"]) as team:
            train(
                config["spec"],
                config["folder"],
                lambda *_: None,
                num_gpus=config["num_gpus"],
                team=team,
            )
    except InputError as error:
        refused.write_text(str(error), encoding="utf-8")


@contextmanager
def _team(storage: Path, num_gpus: int) -> Iterator[Team]:
    """This process among those that train together.

    They find each other by a file in `storage`, not by a server, and talk over the loopback
    interface where they are all on one machine.
    """
    context = ray_train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    if team.size == 1:
        yield team
        return
    if context.get_local_world_size() == team.size:
        os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    name = broadcast_from_rank_zero(uuid.uuid4().hex)  # processes that are started again need anew
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if num_gpus else "gloo",
        init_method=f"file://{storage / name}",
        rank=team.rank,
        world_size=team.size,
    )
    try:
        yield team
    finally:
        distributed.destroy_process_group()
