"""MLflow, fed from the journal in the background.

A server that is slow or away costs a search nothing: what could not be sent is sent later.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipelines.config.redaction import masked_url, without_secrets
from pipelines.tracking.metrics import DATASET_CONTEXT, PARENT
from pipelines.tracking.view import VIEW, charts_link, preset_view, view_of_sweep

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
)  # by default one call to a server that is away blocks for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

log = logging.getLogger(__name__)

FINISH_TIMEOUT_S = 60.0
"""How long the end of a search waits for a tracking server that is behind."""


_RETRY_S = (1.0, 5.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True)
class TokenDataset:
    """What MLflow shows as a dataset input of a run."""

    name: str
    digest: str
    source: Mapping[str, Any]
    num_sequences: int
    sequence_length: int


@dataclass(slots=True)
class Tracker:
    """One MLflow run. Every method returns at once; `finish` waits for the rest.

    Args:
        started: seconds since 1970.
        run_id: of the run to go on with; None makes a new one, and tells `on_run_id`.
        keeps_status: leave the run as finished, failed or running as it is: it belongs to another
            job.
        again: what sends again what a server did not take.
        parent: of the sweep that this run is a point of.
        is_sweep: that it is such a parent, with a view of its own of its points.
    """

    uri: str
    experiment: str
    run_name: str
    started: float
    run_id: str | None
    on_run_id: Callable[[str], None]
    experiment_id: str | None = None
    keeps_status: bool = False
    again: str = "resume=true with this output_dir"
    parent: Tracker | None = None
    is_sweep: bool = False
    _queue: Queue[Callable[[Any], None] | None] = field(default_factory=Queue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _warned: bool = False
    _problem: str = ""

    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Mapping[str, TokenDataset],
    ) -> None:
        """Begins to send; what describes the run goes first."""
        self._thread = threading.Thread(target=self._send_all, name="tracking", daemon=True)
        self._thread.start()
        self._queue.put(lambda client: self._describe(client, params, tags, datasets))

    def log_metrics(
        self, metrics: Mapping[str, float | int | None], *, step: int, timestamp: float
    ) -> None:
        """All metrics of one step in one call. The same point sent twice is stored once."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        self._queue.put(lambda client: self._log_batch(client, values, step, timestamp))

    def finish(
        self, *, succeeded: bool, artifacts: Sequence[Path], timeout_s: float | None = None
    ) -> bool:
        """Sends the rest.

        False: the server did not take everything in time; the same command with `resume=true` sends
        it again.
        """
        assert self._thread is not None
        status = "FINISHED" if succeeded else "FAILED"
        for path in artifacts:
            self._queue.put(partial(self._log_artifact, path=path))
        if not self.keeps_status:
            self._queue.put(lambda client: client.set_terminated(self.run_id, status))
        self._queue.put(None)
        self._thread.join(FINISH_TIMEOUT_S if timeout_s is None else timeout_s)
        if not self._thread.is_alive():
            return True
        self._stop.set()
        log.warning(
            "MLflow at %s did not take everything; nothing is lost: %s sends it again",
            masked_url(self.uri),
            self.again,
        )
        return False

    def state(self) -> str:
        """In words, for people who watch."""
        waiting = self._queue.qsize()
        if self._problem:
            return f"away ({self._problem[:100]}); {waiting} calls wait, nothing is lost"
        return f"{waiting} calls wait" if waiting > 1 else "up to date"

    def link(self) -> str:
        """How to see it, in words: the charts of the runs that it belongs to."""
        folder = local_folder(self.uri)
        server = masked_url(self.uri) if folder is None else "http://127.0.0.1:5000"
        start = "" if folder is None else f"mlflow ui --backend-store-uri {self.uri}, then "
        return f"in MLflow: {start}{charts_link(server, self.experiment_id, self._view)}"

    @property
    def _view(self) -> str:
        return f"{VIEW}-{self.run_id}" if self.is_sweep else VIEW

    def _send_all(self) -> None:
        client: Any = None
        while True:
            action = self._queue.get()
            if action is None:
                return
            attempt = 0
            while not self._stop.is_set():
                try:
                    client = client or self._connect()
                    action(client)
                    self._problem = ""
                    break
                # Whatever a tracking server does wrong must not reach the search.
                except Exception as error:  # noqa: BLE001
                    self._problem = without_secrets(_first_line(error), self.uri)
                    if not self._warned:
                        log.warning(
                            "MLflow at %s: %s; the search goes on, sending is tried again",
                            masked_url(self.uri),
                            self._problem,
                        )
                        self._warned = True
                    self._stop.wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                    attempt += 1

    def _connect(self) -> Any:
        from mlflow import (
            MlflowClient,
        )  # takes seconds to import, which the search need not wait for

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = local_folder(self.uri)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(self.uri)
        if self.run_id is None:
            found = client.get_experiment_by_name(self.experiment)
            artifacts = (folder / "mlartifacts").as_uri() if folder is not None else None
            self.experiment_id = (
                found.experiment_id
                if found
                else client.create_experiment(self.experiment, artifact_location=artifacts)
            )
            client.set_experiment_tag(self.experiment_id, *preset_view())
            self.run_id = client.create_run(
                self.experiment_id, start_time=round(self.started * 1000), run_name=self.run_name
            ).info.run_id
            self.on_run_id(self.run_id)
            if self.is_sweep:
                client.set_experiment_tag(
                    self.experiment_id, *view_of_sweep(self.run_name, self.run_id, self._view)
                )
        else:
            self.experiment_id = client.get_run(self.run_id).info.experiment_id
            if not self.keeps_status:
                client.update_run(self.run_id, status="RUNNING")
        return client

    def _describe(
        self,
        client: Any,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Mapping[str, TokenDataset],
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        if self.parent is not None:
            while self.parent.run_id is None and not self._stop.wait(0.1):
                pass  # it is on its way to the same server
            tags = {**tags, PARENT: self.parent.run_id} if self.parent.run_id is not None else tags
        known = client.get_run(self.run_id).data
        new = [
            Param(name, str(value)) for name, value in params.items() if name not in known.params
        ]
        for start in range(0, len(new), 100):
            client.log_batch(self.run_id, params=new[start : start + 100])
        client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        inputs = [
            DatasetInput(
                Dataset(
                    name=dataset.name,
                    digest=dataset.digest,
                    source_type="local",
                    source=json.dumps(dict(dataset.source)),
                    profile=json.dumps(
                        {
                            "num_sequences": dataset.num_sequences,
                            "sequence_length": dataset.sequence_length,
                        }
                    ),
                ),
                tags=[InputTag(DATASET_CONTEXT, context)],
            )
            for context, dataset in datasets.items()
        ]
        if inputs:
            client.log_inputs(self.run_id, inputs)

    def _log_artifact(self, client: Any, path: Path) -> None:
        client.log_artifact(self.run_id, str(path))

    def _log_batch(
        self, client: Any, values: Mapping[str, float], step: int, timestamp: float
    ) -> None:
        from mlflow.entities import Metric

        client.log_batch(
            self.run_id,
            metrics=[
                Metric(name, value, int(timestamp * 1000), step) for name, value in values.items()
            ],
        )


def local_folder(uri: str) -> Path | None:
    """The folder of an SQLite tracking store, where its artifacts go too; None for servers."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).absolute().parent


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
