"""A recovery in MLflow, as a run under that of its search.

Only what a checkpoint includes is sent: later updates are taken again by a recovery that goes on,
and would be there twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from pipelines.cli.repeating import repeating
from pipelines.config.recover import RECOVERY_OPTIONS
from pipelines.recover.job import RecoverJob
from pipelines.runs.files import ADAPTERS, RECOVERY, RUN
from pipelines.runs.folder import RunFolder
from pipelines.runs.provenance import versions
from pipelines.runs.resume import make_absolute, saved_url
from pipelines.tracking.description import recovery_description, started_description
from pipelines.tracking.logged_model import MAX_TAG, PrunedModel
from pipelines.tracking.metrics import (
    recovered_metrics,
    recovery_metrics,
    recovery_params,
    recovery_tags,
)
from pipelines.tracking.token_dataset import TokenDataset
from pipelines.tracking.tracker import Tracker
from pruning.calibration.token_sets import TokenSet
from pruning.recovery.journal import JOURNAL, Line

_DECIDES = ("model", "run", "shape", "importance", "recovery", "calibration", "output_dir")


class RecoveryTracking:
    """The MLflow run of one recovery."""

    def __init__(self, job: RecoverJob, folder: RunFolder) -> None:
        self._job, self._folder = job, folder
        self._record = folder.read(RUN) or {}
        self._num_sent = 0
        tracking = job.config.tracking
        self.tracker = Tracker(
            tracking.uri,
            tracking.experiment,
            f"recovery of {job.pruned.model_name}",
            self._record["started"],
            self._record.get("mlflow_run_id"),
            lambda run_id: folder.remember(mlflow_run_id=run_id),
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Marks the run as failed where the context is left by an error."""
        search, uri = self._job.search, self._job.config.tracking.uri
        same = search is not None and saved_url(uri) == search.config.tracking.uri
        tags = recovery_tags(
            self._job.pruned.fingerprint,
            parent=search.record.get("mlflow_run_id") if search and same else None,
            versions=versions(),
        )
        datasets = {
            name: self._dataset(tokens)
            for name, tokens in (("training", self._job.text), ("heldout", self._job.heldout))
        }
        self.tracker.start(recovery_params(self._job.identity(), self._job.source), tags, datasets)
        self.tracker.describe(
            started_description(
                self._job.pruned.model_name, f"a recovery of {self._whose}", self._command()
            )
        )
        try:
            yield
        except BaseException as error:
            self.tracker.fail(error)
            raise

    def send(self, lines: Sequence[Line]) -> None:
        """Those of the lines, from the first, that were not sent yet. What an earlier process has
        sent is stored once.
        """
        for line in lines[self._num_sent :]:
            self.tracker.log_metrics(
                recovery_metrics(line), step=line["step"], timestamp=line["timestamp"]
            )
        self._num_sent = max(self._num_sent, len(lines))

    def finish(self, found: Mapping[str, Any]) -> bool:
        """Sends the rest; see `Tracker.finish`.

        Args:
            found: what `recovery.json` says.
        """
        self.tracker.describe(recovery_description(found, self._command()))
        params = {"model": found["model"], "ratio": f"{found['ratio']:.4f}", "recovered": "true"}
        tags = {"multipruner.run": self._folder.path, "multipruner.shape": found["shape"]}
        self.tracker.log_model(
            PrunedModel(
                self.tracker.run_name,
                params,
                {name: str(value)[:MAX_TAG] for name, value in tags.items()},
                self._job.config.tracking.register,
            )
        )
        self.tracker.log_metrics(
            recovered_metrics(found),
            step=found["num_steps"],
            timestamp=found["ended"],
            of_model=True,
            dataset=(found["text"]["source"], found["text"]["heldout_fingerprint"]),
        )
        small = self._job.settings.rank is not None  # whole matrices are as large as the model
        names = (RECOVERY, *([ADAPTERS] if small else []), JOURNAL)
        artifacts = [self._folder.path / name for name in names]
        return self.tracker.finish(succeeded=True, artifacts=artifacts)

    def _command(self) -> str:
        """Of what is where it is: a recovery of another search or shape is another."""
        config = OmegaConf.structured(self._job.config)
        make_absolute(config, self._job.config.path_options)
        # only a shape file's recovery must be told where to go
        config.output_dir = None if config.run else str(self._folder.path)
        choice = f"calibration={config.calibration.source}"
        return repeating("recover", config, _DECIDES, choices=[choice], without=RECOVERY_OPTIONS)

    @property
    def _whose(self) -> str:
        [(kind, place)] = self._job.source.items()
        return f"the {'search' if kind == 'run' else 'shape'} in {place}"

    def _dataset(self, tokens: TokenSet) -> TokenDataset:
        calibration = self._job.config.calibration
        source = {"source": calibration.source, "path": calibration.path}
        return TokenDataset(
            calibration.source,
            tokens.fingerprint,
            source,
            tokens.num_sequences,
            tokens.sequence_length,
        )
