"""The training in processes that Ray Train starts, and starts again where one is lost.

Checkpoints are our own, in the folder of the recovery, which every process must see: those that
take over go on from the last. As their number changes no bit of what is trained, they may be fewer
or more than those before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import train as ray_train
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]  # not in its __all__

from pruning import disk
from pruning.errors import InputError
from pruning.recovery.journal import JOURNAL, StoppedBy, checkpoint_steps, ended, read_journal
from pruning.recovery.team import Team
from workers.cluster.placement import Placement
from workers.cluster.resources import free_nodes, nodes
from workers.pool.faults import WorkersLost
from workers.pool.stall import StallWatch
from workers.training.trainer import TrainingFailed, TrainingSpec, Watch, train

log = logging.getLogger(__name__)

_LOSSES = 5
"""Times that the training may be lost before it is given up."""
_LOOK_EVERY_S = 0.5
_REFUSED = "refused"
"""What a process says of input that cannot be used: to start again would not help."""
_STORAGE = ".ray-"
_SETTLED_S = 10.0
"""After so long whatever is free is taken."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def train_on_ray(spec: TrainingSpec, folder: Path, watch: Watch, placement: Placement) -> StoppedBy:
    """The same as `train`, in processes on the connected Ray.

    Where one is lost, as many as there is room for then go on from the last checkpoint.

    Args:
        placement: how many there are at most, and what each gets. There are no more than an update
            has parts.

    Raises:
        InputError: as of `train`.
        TrainingFailed: processes were lost too often, or none got what it asks for in
            `placement.stall_timeout_s`.
    """
    for left in folder.glob(f"{_STORAGE}*"):  # by a driver that was killed
        shutil.rmtree(left, ignore_errors=True)
    most = min(placement.num_evaluators or spec.settings.num_parts, spec.settings.num_parts)
    for losses_left in reversed(range(_LOSSES + 1)):
        running = _Running(spec, folder, placement, _room(placement, most))
        try:
            while running.is_alive():
                running.join(_LOOK_EVERY_S)
                _look(folder, watch)
            if (refused := running.storage / _REFUSED).exists():
                raise InputError(refused.read_text(encoding="utf-8"))
        finally:
            shutil.rmtree(running.storage, ignore_errors=True)
        if not running.problem:
            break
        if not losses_left:
            raise TrainingFailed(running.problem)
        log.warning(
            "cluster: the training was lost (%s); it starts again from the last checkpoint",
            running.problem,
        )
    lines = read_journal(folder / JOURNAL)
    return (ended(lines, spec.settings) if lines else None) or "not_finite"


def _room(placement: Placement, most: int) -> int:
    """How many processes can start now, `most` at most. Waits until one can, and a little for those
    of processes before, which Ray has not given up yet.

    Ray Train would count by itself, but neither labels nor what others have.

    Raises:
        TrainingFailed: none could in `placement.stall_timeout_s`.
    """
    stall, since = StallWatch(placement), time.monotonic()
    while True:
        found = sum(placement.fits_on(node) for node in free_nodes())
        if found >= most or (found and time.monotonic() - since > _SETTLED_S):
            return min(found, most)
        stall.look_at(nodes())
        try:
            stall.check(())
        except WorkersLost as error:
            raise TrainingFailed(str(error).removeprefix("cluster: ")) from error
        time.sleep(_LOOK_EVERY_S)


def _look(folder: Path, watch: Watch) -> None:
    """What the process has written by now. A line that is being written is seen the next time."""
    num_saved = max(checkpoint_steps(folder), default=-1) + 1
    with contextlib.suppress(InputError):
        lines = read_journal(folder / JOURNAL)
        if lines and num_saved <= len(lines):
            watch(lines, num_saved)


class _Running(threading.Thread):
    """Ray Train at work, in a thread, so that signals stay with the command."""

    def __init__(
        self, spec: TrainingSpec, folder: Path, placement: Placement, num_processes: int
    ) -> None:
        super().__init__(name="training", daemon=True)
        self.storage = Path(tempfile.mkdtemp(prefix=_STORAGE, dir=folder))
        self.problem = "Ray Train ended without a word"
        resources: dict[str, float] = {"CPU": placement.num_cpus, "GPU": placement.num_gpus}
        if placement.memory_bytes:
            resources["memory"] = placement.memory_bytes
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
                num_workers=num_processes,
                use_gpu=placement.num_gpus > 0,
                resources_per_worker=resources,
                label_selector=dict(placement.label_selector) or None,
            ),
            run_config=RunConfig(  # type: ignore[arg-type]  # older annotation
                name="recovery",
                storage_path=str(self.storage),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
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
    with _team(storage, config["num_gpus"]) as team:
        try:
            train(
                config["spec"],
                config["folder"],
                lambda *_: None,
                num_gpus=config["num_gpus"],
                team=team,
            )
        except InputError as error:
            # before the others see that this one is gone, and Ray Train ends them
            written = storage / f"{_REFUSED}-{team.rank}"
            written.write_text(str(error), encoding="utf-8")
            disk.rename(written, storage / _REFUSED)
            raise


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
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if num_gpus else "gloo",
        store=FileStore(str(storage / "group"), team.size),
        rank=team.rank,
        world_size=team.size,
    )
    yield team
    # Not where something went wrong: others may wait for this one, and Ray Train ends them all.
    distributed.destroy_process_group()
