"""One recovery from start to finish: training, then files, table and MLflow."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from rich.table import Table

from pipelines.cli.commands import command_line
from pipelines.cli.console import WorkProgress, duration, show_result
from pipelines.config.overrides import as_override
from pipelines.errors import Failed
from pipelines.recover.job import RecoverJob
from pipelines.recover.plan import plan_in_words, recovery_plan
from pipelines.recover.status import RecoveryStatus
from pipelines.recover.tracking import RecoveryTracking
from pipelines.runs.files import ADAPTERS, RECOVERY
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import git_revision, versions
from pruning.canonical_json import dump_json
from pruning.recovery.adapters import adapter_fingerprint, write_adapters
from pruning.recovery.journal import (
    CHECKPOINTS,
    JOURNAL,
    Line,
    StoppedBy,
    TrainingFiles,
    best_step,
    read_journal,
)
from pruning.scoring.score import perplexity

log = logging.getLogger(__name__)

_ENDED_BY = {
    "steps": "all updates were taken",
    "patience": "held-out text gained nothing any more",
    "not_finite": "a loss or gradient was NaN or infinite",
}


def run_recovery(job: RecoverJob, folder: RunFolder) -> dict[str, Any]:
    """Trains and writes the result; one that is there already is shown again.

    Raises:
        Failed: nothing was gained.
    """
    tracking = RecoveryTracking(job, folder)
    status = RecoveryStatus(folder, job.settings.steps)
    with status.running(), tracking.running():
        found = folder.read(RECOVERY)
        if found is None:
            found = _train(job, folder, tracking, status)
        else:
            status.told(read_journal(folder.path / JOURNAL))
        shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
        tracking.send(read_journal(folder.path / JOURNAL))
        tracked = tracking.finish(found)
    run = as_override("run", folder.path)
    show_result(
        as_table(found),
        f"everything is in {folder.path}",
        "to go on: " + command_line("evaluate", run, "evaluation=full"),
        "          " + command_line("export", run, "format=transformers"),
        *((tracking.tracker.link(),) if tracked else ()),
        *tracking.tracker.left_out(),
    )
    return found


def _train(
    job: RecoverJob, folder: RunFolder, tracking: RecoveryTracking, status: RecoveryStatus
) -> dict[str, Any]:
    settings = job.settings
    log.info(
        "%s, %.1f %% of its parameters removed: %d updates of %d x %d tokens, %s, %s",
        job.pruned.model_name,
        100 * job.pruned.accounting.ratio(job.pruned.shape),
        settings.steps,
        settings.batch_size,
        job.text.sequence_length,
        settings.loss,
        settings.trained,
    )
    log.info("at most %s", plan_in_words(recovery_plan(job)))
    with WorkProgress("updates") as bar:
        shown = _Shown(settings.steps, bar)

        def watch(lines: Sequence[Line], num_saved: int) -> None:
            shown.show(lines)
            status.told(lines, rate=round(bar.rate, 3), left_s=bar.left_s)
            tracking.send(lines[:num_saved])

        stopped_by = job.train(folder.path, watch)
    files = TrainingFiles(folder.path)
    if not files.lines:
        raise Failed(
            f"run: the held-out NLL of the pruned model is not finite, so it cannot be recovered; "
            f"output_dir={folder.path}"
        )
    best = best_step(files.lines)
    if stopped_by == "not_finite":
        log.warning("%s: what was gained by update %d is kept", _ENDED_BY[stopped_by], best)
    if not best:
        raise Failed(
            f"recovery: {len(files.lines) - 1} updates gained nothing on held-out text "
            f"({_ENDED_BY[stopped_by]}); what was pruned is as it was. Give multipruner recover "
            "another output_dir and a lower recovery.learning_rate, or more text"
        )
    path = files.checkpoint(best)
    folder.write_with(ADAPTERS, lambda target: write_adapters(path, target))
    found = _description(job, folder, files, stopped_by)
    folder.write(RECOVERY, dump_json(found))
    return found


class _Shown:
    """Progress on the terminal, and a log line for each checkpoint."""

    def __init__(self, steps: int, bar: WorkProgress) -> None:
        self._steps, self._bar = steps, bar
        self._num_shown: int | None = None
        self._losses: list[float] = []

    def show(self, lines: Sequence[Line]) -> None:
        """What is new of all lines so far; the first time they are those of an earlier process, or
        the one before the first update.
        """
        if self._num_shown is None:
            self._num_shown = len(lines)
            self._bar.advance(len(lines) - 1, scored=False)
            self._bar.expect("training", self._steps - (len(lines) - 1))
        for line in lines[self._num_shown :]:
            self._bar.advance(1, scored=True)
            self._losses.append(line["loss"])
            if line["heldout_nll"] is not None:
                self._say(line, lines[0])
        self._num_shown = max(self._num_shown, len(lines))

    def _say(self, line: Line, before: Line) -> None:
        log.info(
            "update %d of %d: mean loss %.4f, held-out perplexity %.3f (%.3f before), %s left",
            line["step"],
            self._steps,
            mean(self._losses),
            perplexity(line["heldout_nll"]),
            perplexity(before["heldout_nll"]),
            duration(self._bar.left_s),
        )
        self._losses.clear()


def _description(
    job: RecoverJob, folder: RunFolder, files: TrainingFiles, stopped_by: StoppedBy
) -> dict[str, Any]:
    """What recovery.json says."""
    pruned, lines, calibration = job.pruned, files.lines, job.config.calibration
    search = job.search
    best = best_step(lines)
    nll = {
        "dense": lines[0]["dense_nll"],
        "pruned": lines[0]["heldout_nll"],
        "recovered": lines[best]["heldout_nll"],
    }
    return {
        "run": None if search is None else os.path.relpath(search.folder, folder.path),
        "model": pruned.model_name,
        "fingerprint": pruned.fingerprint,
        "shape": pruned.shape.text,
        "ratio": pruned.accounting.ratio(pruned.shape),
        "dtype": job.dtype,
        "channel_order": pruned.order.fingerprint,
        "adapters": adapter_fingerprint(folder.path / ADAPTERS),
        "stopped_by": stopped_by,
        "num_steps": len(lines) - 1,
        "best_step": best,
        "num_tokens": (len(lines) - 1) * job.settings.batch_size * job.text.sequence_length,
        "loss": {"first": lines[1]["loss"], "best": lines[best]["loss"]},
        "heldout_nll": nll,
        "heldout_perplexity": {name: perplexity(value) for name, value in nll.items()},
        "settings": asdict(job.settings),
        "text": {
            "source": calibration.source,
            "sources": str(calibration.mixture()) if calibration.sources else None,
            "sequence_length": job.text.sequence_length,
            "num_sequences": job.text.num_sequences,
            "num_heldout_sequences": job.heldout.num_sequences,
            "fingerprint": job.text.fingerprint,
            "heldout_fingerprint": job.heldout.fingerprint,
        },
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "ended": round(time.time(), 3),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def as_table(found: dict[str, Any]) -> Table:
    """What was given back, as a person reads it."""
    nll, perplexities = found["heldout_nll"], found["heldout_perplexity"]
    shown = Table(
        title=f"{found['model']}, {found['ratio']:.1%} of the parameters removed: recovered in "
        f"{found['best_step']} updates, {duration(found['seconds'])}",
        title_justify="left",
    )
    for name in ("", *nll, "of the loss given back"):
        shown.add_column(name, justify="right" if name else "left")
    lost = nll["pruned"] - nll["dense"]
    share = f"{(nll['pruned'] - nll['recovered']) / lost:.0%}" if lost > 0 else ""
    cells = ("-" if value is None else f"{value:.3f}" for value in perplexities.values())
    shown.add_row("perplexity, held-out text", *cells, "")
    shown.add_row("NLL, nats per token", *(f"{value:.4f}" for value in nll.values()), share)
    shown.caption = f"ended because {_ENDED_BY[found['stopped_by']]}; loss: " + str(
        found["settings"]["loss"]
    )
    shown.caption_justify = "left"
    return shown
