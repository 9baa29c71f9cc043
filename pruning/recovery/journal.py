"""recovery.jsonl and the checkpoints beside it: where a training is, in files that are whole.

A line for each update, and one for the model before the first. Lines are on disk before the
checkpoint that includes them, and those that no checkpoint includes are dropped when a training
goes on: the updates are taken again. So no update is there twice.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from pruning import disk
from pruning.errors import InputError
from pruning.recovery.settings import RecoverySettings

JOURNAL = "recovery.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".training"
"""Held by the process that trains."""
_NAME = "step-{step:06d}.safetensors"

Line = Mapping[str, Any]
"""`step`, `loss`, `grad_norm` and `learning_rate` (null before the first update), `heldout_nll`
(null where it was not measured), `seconds` and `timestamp`; before the first update `dense_nll`,
which is the dense model's on the held-out text.
"""

StoppedBy = Literal["steps", "patience", "not_finite"]
"""All updates were taken; held-out text gained nothing any more; a loss was NaN or infinite."""


class TrainingFiles:
    """The journal and the checkpoints of one training that has not ended.

    Args:
        told: lines of another process, which writes; this one keeps them in mind, and reads no
            folder that its machine may see as it was a minute ago.

    Raises:
        InputError: the journal is damaged.
    """

    def __init__(self, folder: Path, *, told: Sequence[Line] | None = None) -> None:
        self.path, self._checkpoints = folder / JOURNAL, folder / CHECKPOINTS
        self._writes = told is None
        if told is not None:
            self.lines = list(told)
            return
        self._checkpoints.mkdir(exist_ok=True)
        self.lines = read_journal(self.path)
        self._cut()

    @property
    def last_step(self) -> int | None:
        """Of the last checkpoint; None before the first."""
        return max(checkpoint_steps(self._checkpoints.parent), default=None)

    @property
    def num_saved(self) -> int:
        """Lines that the last checkpoint includes."""
        return 0 if self.last_step is None else self.last_step + 1

    def checkpoint(self, step: int) -> Path:
        return self._checkpoints / _NAME.format(step=step)

    def append(self, line: Line) -> None:
        if self._writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines.append(line)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """A checkpoint, there whole or not at all; only it and the best one are kept."""
        if not self._writes:
            return
        disk.sync(self.path)
        disk.sync(self.path.parent)
        with tempfile.TemporaryDirectory(dir=self._checkpoints, prefix=".") as scratch:
            temporary = Path(scratch) / "checkpoint"
            write(temporary)
            disk.rename(temporary, self.checkpoint(step))
        for other in checkpoint_steps(self.path.parent) - {step, best_step(self.lines)}:
            self.checkpoint(other).unlink()

    def drop_unsaved(self) -> None:
        """Lines that no checkpoint includes."""
        if self._writes:
            self._cut()

    def _cut(self) -> None:
        last = self.last_step
        kept = [line for line in self.lines if last is not None and line["step"] <= last]
        if last is not None and len(kept) != last + 1:
            raise InputError(
                f"output_dir: {self.path} is damaged: it lacks updates that "
                f"{self.checkpoint(last).name} includes; remove the folder and recover again"
            )
        if self.path.exists():
            temporary = self.path.with_suffix(".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)
            disk.rename(temporary, self.path)
        self.lines = kept


def checkpoint_steps(folder: Path) -> set[int]:
    """The updates after which there is a checkpoint in the folder of a training."""
    return {int(path.stem.partition("-")[2]) for path in (folder / CHECKPOINTS).glob("step-*")}


def read_journal(path: Path) -> list[Line]:
    """The lines, without a last one that a crash cut short.

    Raises:
        InputError: it is damaged.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        lines = [json.loads(line, parse_constant=_refused_constant) for line in whole.splitlines()]
        if [line["step"] for line in lines] != list(range(len(lines))):
            raise ValueError("its steps are not 0, 1, 2, ...")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"output_dir: {path} is damaged: {error}; remove the folder and recover again"
        ) from error
    return lines


def _refused_constant(name: str) -> NoReturn:
    """NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is no number")


def best_step(lines: Sequence[Line]) -> int:
    """The checkpoint with the lowest held-out NLL, the first of equals."""
    measured = [line for line in lines if line["heldout_nll"] is not None]
    return int(min(measured, key=lambda line: line["heldout_nll"])["step"])


def ended(lines: Sequence[Line], settings: RecoverySettings) -> StoppedBy | None:
    """Whether there is nothing more to do, from the lines alone."""
    if len(lines) > settings.steps:
        return "steps"
    since = [line for line in lines[best_step(lines) + 1 :] if line["heldout_nll"] is not None]
    if settings.patience is not None and len(since) >= settings.patience:
        return "patience"
    return None
