"""What an earlier `pipelines.prune` left in its folder: the model that it pruned, the shape that it
came to, and the way there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipelines.runs.files import (
    ADAPTERS,
    CHANNEL_ORDER,
    CONFIG,
    RECOVERY,
    RUN,
    SUMMARY,
    TRAJECTORY,
    damaged,
    read_json,
    read_json_if_there,
    read_trajectory,
    read_with,
    read_yaml,
)
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder, RecoverySource
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.find import find_checkpoint
from pruning.recovery.journal import JOURNAL as RECOVERY_JOURNAL
from pruning.shape import ModelShape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class SavedRun:
    """What the folder of a search says by itself, wherever its model is now.

    The search has ended or was stopped.

    Args:
        config: its `config.yaml`; passwords in URLs are masked there.
        lines: of its trajectory, at least one.
        record: its `run.json`.
        summary: its `summary.json`; None if it has not ended.
    """

    folder: Path
    config: DictConfig
    lines: tuple[dict[str, Any], ...]
    record: dict[str, Any]
    summary: dict[str, Any] | None

    @property
    def model_name(self) -> str:
        return display_name(self.config.model.path)

    @property
    def fingerprint(self) -> str:
        """Of the dense model."""
        return str(self.record["identity"]["model"])

    @property
    def dtype(self) -> str:
        """That the search scored in."""
        return str(self.record["identity"]["model.dtype"])

    def shape_at(self, ratio: float) -> ModelShape:
        """The shape after the first step that removed this ratio of the parameters or more.

        Args:
            ratio: removed / all parameters, above 0.

        Raises:
            InputError: no step did.
        """
        found = next((line for line in self.lines if line["ratio"] >= ratio), None)
        if found is None or not ratio > 0:
            raise InputError(
                f"ratio: {ratio:g}; give one above 0, up to the {self.lines[-1]['ratio']:g} that "
                f"the search in {self.folder} came to, or search on for more"
            )
        return ModelShape.parse(found["shape"])

    def with_model(self, checkpoint: Checkpoint, accounting: Accounting) -> PastRun:
        """The same with its model, whose weights the caller knows to be the ones that were pruned.

        Raises:
            InputError: the file with the order of its channels is missing or damaged, or the
                trajectory is one of another model.
        """
        shape = ModelShape.parse(self.lines[-1]["shape"])
        problems = accounting.geometry.problems(shape)
        if problems:
            error = ValueError(f"its last shape does not fit the model: {problems[0]}")
            raise damaged(self.folder / TRAJECTORY, error, option="run")
        return PastRun(
            self.folder,
            self.config,
            self.lines,
            self.record,
            self.summary,
            checkpoint,
            accounting,
            shape,
            read_with(ChannelOrder.load, self.folder / CHANNEL_ORDER, option="run"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PastRun(SavedRun):
    """The same with its model at hand, as it was.

    The recovery of a shape file is one, too, without steps: no search led to its shape.

    Args:
        recovery: `recovery.json`; None: nothing was trained.
    """

    checkpoint: Checkpoint
    accounting: Accounting
    shape: ModelShape
    order: ChannelOrder
    recovery: dict[str, Any] | None = None

    def recovered(self, recovery: SavedRecovery) -> PastRun:
        """The same with what a recovery of it added, in the recovery's folder.

        Raises:
            InputError: the recovery is one of another search or shape.
        """
        found = recovery.description
        if found["shape"] != self.shape.text or found["fingerprint"] != self.fingerprint:
            raise InputError(
                f"run: the search in {self.folder} is not what it was when {recovery.folder} was "
                "recovered from it: it came to another shape, or has another model; recover again"
            )
        source = RecoverySource(str(recovery.folder / ADAPTERS), found["adapters"])
        page = {"mlflow_run_id": recovery.record.get("mlflow_run_id")}
        config = self.config.copy()
        config.tracking = recovery.config.tracking
        return replace(
            self,
            folder=recovery.folder,
            config=config,
            record=self.record | page,
            order=replace(self.order, recovery=source),
            recovery=found,
        )


@dataclass(frozen=True, slots=True, eq=False)
class SavedRecovery:
    """What the folder of a recovery that has ended says.

    Args:
        run: folder of the search; None: a shape file was recovered.
        config: its `config.yaml`.
        record: its `run.json`.
        description: its `recovery.json`.
    """

    folder: Path
    run: Path | None
    config: DictConfig
    record: dict[str, Any]
    description: dict[str, Any]

    @property
    def shape(self) -> ModelShape:
        return ModelShape.parse(self.description["shape"])


def read_recovery(path: str, *, option: str = "run") -> SavedRecovery | None:
    """Reads the folder of a recovery; None if it is none.

    Args:
        option: that names the folder, for messages.

    Raises:
        InputError: it has not ended, or something in it is missing or damaged.
    """
    folder = Path(path).expanduser().absolute()
    if not (folder / RECOVERY_JOURNAL).exists() and not (folder / RECOVERY).exists():
        return None
    if not (folder / RECOVERY).exists():
        raise InputError(
            f"{option}: the recovery in {folder} has not ended, or gained nothing; give its "
            "multipruner recover again, which goes on or says so"
        )
    needed = ("run", "shape", "fingerprint", "adapters")
    found = read_json(folder / RECOVERY, option=option, fields=needed)
    record = read_json(folder / RUN, option=option, fields=("identity",))
    config = read_yaml(folder / CONFIG, option=option, fields=("tracking.uri",))
    run = None if found["run"] is None else (folder / found["run"]).resolve()
    return SavedRecovery(folder, run, config, record, found)


def read_run(path: str) -> PastRun:
    """Reads the folder of a search, or that of a recovery, which is the search with what training
    added.

    Raises:
        InputError: it is not one, something in it is missing or damaged, or its model is not where
            it was or not what it was.
    """
    recovery = read_recovery(path)
    if recovery is not None:
        of = _shape_of(recovery) if recovery.run is None else read_run(str(recovery.run))
        return of.recovered(recovery)
    saved = read_saved_run(path, needs=(CHANNEL_ORDER,))
    lines, whose = saved.lines, f"the search in {saved.folder} pruned"
    found = _model_of(saved.config, saved.fingerprint, whose)
    if saved.summary is None:
        log.warning(
            "run: the search in %s has not ended: this is its shape after %d steps, ratio %.2f %%",
            saved.folder,
            len(lines),
            100 * lines[-1]["ratio"],
        )
    return saved.with_model(*found)


def _shape_of(recovery: SavedRecovery) -> PastRun:
    """What a recovery of a shape file was of: its own folder has the order and the model's name."""
    folder, described = recovery.folder, recovery.description
    found = _model_of(recovery.config, described["fingerprint"], f"was recovered in {folder}")
    order = read_with(ChannelOrder.load, folder / CHANNEL_ORDER, option="run")
    return PastRun(
        folder, recovery.config, (), recovery.record, None, *found, recovery.shape, order
    )


def _model_of(config: DictConfig, fingerprint: str, whose: str) -> tuple[Checkpoint, Accounting]:
    """The dense model that a configuration names.

    Raises:
        InputError: it is not there, or not the one with the fingerprint.
    """
    model = config.model
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if checkpoint.fingerprint() != fingerprint:
        raise InputError(
            f"run: {model.path} is not the model that {whose}: it has changed since (fingerprint "
            f"{fingerprint} then)"
        )
    accounting = Accounting(checkpoint.config(), trust_remote_code=checkpoint.trust_remote_code)
    return checkpoint, accounting


def read_saved_run(path: str, *, option: str = "run", needs: Sequence[str] = ()) -> SavedRun:
    """Reads the folder of a search, and nothing outside it; of a recovery, that of its search.

    Args:
        option: that names the folder, for messages.
        needs: files that must be there besides.

    Raises:
        InputError: it is not the folder of a search that has taken a step, or something in it is
            missing or damaged.
    """
    recovery = read_recovery(path, option=option)
    if recovery is not None and recovery.run is None:
        raise InputError(
            f"{option}: {recovery.folder} is the recovery of a shape file, which no search led to; "
            "give the folder of a search"
        )
    if recovery is not None:
        return read_saved_run(str(recovery.run), option=option, needs=needs)
    folder = Path(path).expanduser().absolute()
    missing = [name for name in (RUN, CONFIG, TRAJECTORY, *needs) if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{option}: {folder} has no {', '.join(missing)}; give the output_dir of a search of "
            "multipruner prune that has taken a step"
        )
    record = read_json(folder / RUN, option=option, fields=("identity",))
    if not isinstance(record["identity"], dict) or "model" not in record["identity"]:
        raise damaged(folder / RUN, KeyError("identity of a search"), option=option)
    needed = ("model.path", "search.importance", "tracking.uri")
    config = read_yaml(folder / CONFIG, option=option, fields=needed)
    lines = read_trajectory(folder / TRAJECTORY, option=option)
    summary = read_json_if_there(folder / SUMMARY, option=option, fields=("status",))
    if not lines:
        raise InputError(f"{option}: the search in {folder} has not taken a step yet")
    return SavedRun(folder, config, tuple(lines), record, summary)
