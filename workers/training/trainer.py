"""The training of a pruned model: updates, held-out text and checkpoints until it ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from pruning.calibration.token_sets import Tokens, TokenSet
from pruning.errors import InputError
from pruning.export.transformers import layers_of, pruned_model
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.adapters import matrices_of
from pruning.recovery.journal import LOCK, Line, StoppedBy, TrainingFiles, ended
from pruning.recovery.prepared import prepared
from pruning.recovery.settings import RecoverySettings
from pruning.recovery.team import Team
from pruning.recovery.training import Recovery
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.shape import ModelShape
from workers.evaluators.device import Device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSpec:
    """Everything that a training is made from.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, of all weights but those that are trained, which
            are float32.
        shape: canonical text of the pruned model.
        text, heldout: int64 [sequences, length].
        num_threads: CPU threads.
    """

    checkpoint: Checkpoint
    dtype: str
    shape: str
    order: ChannelOrder
    settings: RecoverySettings
    text: Tokens = field(repr=False)
    heldout: Tokens = field(repr=False)
    num_threads: int = 1


class TrainingFailed(RuntimeError):
    """Processes that trained were lost too often, or none got a place. What the last checkpoint has
    is kept.
    """


Watch = Callable[[Sequence[Line], int], None]
"""Told all lines so far, and how many of them the last checkpoint includes."""

_HANDOVER_S = 60.0
"""How long a process that a lost driver has left behind is waited for."""


def train(
    spec: TrainingSpec,
    folder: Path,
    watch: Watch,
    *,
    num_gpus: int | None = None,
    team: Team | None = None,
) -> StoppedBy:
    """Trains in this process, from the last checkpoint in the folder if there is one.

    Args:
        num_gpus: see `Device`; one is used.
        team: this process among those that train together; the first of them writes.

    Raises:
        InputError: the model cannot be loaded, or does not fit into memory; the journal is
            damaged; another process trains in the folder.
    """
    settings, threads, team = spec.settings, torch.get_num_threads(), team or Team()
    writes = team.rank == 0
    try:
        with FileLock(folder / LOCK, timeout=_HANDOVER_S) if writes else nullcontext():
            own = TrainingFiles(folder) if writes else None
            state = None if own is None else (own.lines, own.last_step)
            lines, last_step = team.told_by_first(state)
            files = own or TrainingFiles(folder, told=lines)
            reason = None if last_step is None else ended(lines, settings)
            device = Device(spec.num_threads, num_gpus)
            return reason or _train(spec, files, last_step, watch, device, team)
    except Timeout as error:
        raise InputError(
            f"output_dir: another process trains in {folder}; wait for it, or give another folder"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"recovery.micro_batch_size: {settings.micro_batch_size} sequences of "
            f"{spec.text.shape[1]} tokens do not fit into memory; lower it, or "
            f"recovery.sequence_length{', or take recovery=lora' if settings.rank is None else ''}"
        ) from error
    finally:
        torch.set_num_threads(threads)


def load_recovery(spec: TrainingSpec, device: Device, team: Team | None = None) -> Recovery:
    """The pruned model with what is trained of it, cut from the dense one, which `kl` learns from:
    no weight is there twice but those that compensate.

    Raises:
        InputError: the model cannot be loaded, or has nothing to train.
    """
    model = device.load(spec.checkpoint, spec.dtype)
    dense = prepared(LoadedModel.of(model), spec.order)
    shape = ModelShape.parse(spec.shape)
    text, heldout = TokenSet(spec.text), TokenSet(spec.heldout)
    return recovery_of(dense, shape, spec.settings, text, heldout, team)


def recovery_of(
    dense: LoadedModel,
    shape: ModelShape,
    settings: RecoverySettings,
    text: TokenSet,
    heldout: TokenSet,
    team: Team | None = None,
) -> Recovery:
    """The same of a dense model that is prepared.

    Raises:
        InputError: it has nothing to train.
    """
    pruned = pruned_model(dense, shape)
    sources = [(layer.attention, layer.mlp) for layer in layers_of(shape, dense.family)]
    matrices = matrices_of(pruned, dense.family, sources)
    return Recovery(pruned, dense.model, matrices, settings, text, heldout, shape.text, team)


def _train(
    spec: TrainingSpec,
    files: TrainingFiles,
    last_step: int | None,
    watch: Watch,
    device: Device,
    team: Team,
) -> StoppedBy:
    recovery = load_recovery(spec, device, team)
    if last_step is not None:
        recovery.load(files.checkpoint(last_step))
        log.info("going on after update %d of %d", last_step, spec.settings.steps)
    elif not _step(recovery, files, 0):
        return "not_finite"
    watch(files.lines, files.num_saved)
    while (reason := ended(files.lines, spec.settings)) is None:
        if not _step(recovery, files, len(files.lines)):
            files.drop_unsaved()
            return "not_finite"
        watch(files.lines, files.num_saved)
    return reason


def _step(recovery: Recovery, files: TrainingFiles, step: int) -> bool:
    """Update number `step`, with a checkpoint where one is due; 0 only measures the model as it is.

    False: something is not finite, and there is no line of it.
    """
    settings, started = recovery.settings, time.perf_counter()
    dense_nll = None if step else recovery.dense_nll()
    if dense_nll is not None and not math.isfinite(dense_nll):
        raise InputError(
            "model.dtype: the dense model's NLL of the held-out text is not finite in the type of "
            "the search; search in another, such as float32 or bfloat16, and recover that"
        )
    update = recovery.update(step) if step else None
    if step and update is None:
        return False
    is_due = step % settings.checkpoint_every == 0 or step == settings.steps
    if is_due:
        recovery.check_same()
    nll = recovery.heldout_nll() if is_due else None
    if nll is not None and not math.isfinite(nll):
        return False
    line = {
        "step": step,
        "loss": update.loss if update else None,
        "grad_norm": update.grad_norm if update else None,
        "learning_rate": update.learning_rate if update else None,
        "heldout_nll": nll,
        **({} if step else {"dense_nll": dense_nll}),
        "seconds": round(time.perf_counter() - started, 3),
        "timestamp": round(time.time(), 3),
    }
    files.append(line)
    if is_due:
        files.save(step, lambda path: recovery.save(path, step))
    return True
