"""MLflow, fed from the journal in the background.

A server that is slow or away costs a search nothing: what could not be sent is sent later.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipelines.config.redaction import masked_url, without_secrets
from pipelines.tracking.description import (
    MAX_LENGTH,
    MEASURED,
    failed,
    with_pictures,
    with_section,
    with_section_of,
)
from pipelines.tracking.logged_model import PrunedModel, find_model, log_model, register_model
from pipelines.tracking.metrics import NOTE, PARENT
from pipelines.tracking.refusal import Refused, is_refusal
from pipelines.tracking.sender import MAX_SAID, Call, Sender
from pipelines.tracking.token_dataset import TokenDataset, dataset_inputs
from pipelines.tracking.view import VIEW, charts_link, preset_view, view_of_sweep

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
)  # by default one call to a server that is away blocks for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

log = logging.getLogger(__name__)

FINISH_TIMEOUT_S = 60.0
"""How long the end of a search waits for a tracking server that is behind."""


_MAX_PARAMS = 100
"""In one call, by MLflow's own limit."""


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

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        started: float,
        run_id: str | None,
        on_run_id: Callable[[str], object],
        *,
        keeps_status: bool = False,
        again: str = "the same command",
        parent: Tracker | None = None,
        is_sweep: bool = False,
    ) -> None:
        self.uri, self.experiment, self.run_name, self.started = uri, experiment, run_name, started
        self.run_id, self.on_run_id = run_id, on_run_id
        self._is_told = run_id is not None
        self.experiment_id: str | None = None
        self.keeps_status, self.again = keeps_status, again
        self.parent, self.is_sweep = parent, is_sweep
        self.is_behind = False
        """Whether the server did not take, and did not refuse, everything in time."""
        self._described = ""
        self._model_id: str | None = None
        self._last: Call | None = None
        self._sender = Sender(uri, lambda: self._connect())

    def start(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Mapping[str, TokenDataset],
    ) -> None:
        """Begins to send; what describes the run goes first.

        Args:
            datasets: by what the run used them for.
        """
        self._sender.start()
        if self.is_sweep:
            self._sender.put(self._set_view)
        named = list(params.items())
        for start in range(0, len(named), _MAX_PARAMS):
            self._sender.put(self._params(named[start : start + _MAX_PARAMS]))
        self._sender.put(self._tags_and_inputs(tags, datasets))

    def describe(self, markdown: str, pictures: Sequence[str] = ()) -> None:
        """What the run's page says of it, in the place of what it said before, but for what was
        measured of it.

        Args:
            pictures: names of artifacts to show below.
        """
        self._described = markdown
        self._sender.put(self._note(markdown, pictures))

    def describe_further(self, heading: str, markdown: str) -> None:
        """Adds a last section to what the page says, in the place of an earlier one."""

        def send(client: Any) -> None:
            said = client.get_run(self.run_id).data.tags.get(NOTE, "")
            client.set_tag(self.run_id, NOTE, with_section(said, heading, markdown)[:MAX_LENGTH])

        self._sender.put(send)

    def fail(self, error: BaseException, secrets: Sequence[str] = ()) -> None:
        """Ends a run that an error ended, with its message; waits a little for a server that is
        behind.

        Args:
            secrets: addresses whose passwords the message must not hold, besides the server's.
        """
        if not self.keeps_status:
            self.describe_failed(self._described, str(error) or type(error).__name__, secrets)
        self.finish(succeeded=False, artifacts=(), timeout_s=5)

    def describe_failed(
        self,
        markdown: str,
        problem: str,
        secrets: Sequence[str] = (),
        pictures: Sequence[str] = (),
    ) -> None:
        """The same of a run that failed, with the problem and without passwords in it.

        Args:
            secrets: see `fail`.
        """
        for address in (self.uri, *secrets):
            problem = without_secrets(problem, address)
        self.describe(failed(markdown, problem), pictures)

    def log_model(self, model: PrunedModel) -> None:
        """The model that came out of the run, or what is new of it."""

        def send(client: Any) -> None:
            assert self.run_id is not None
            self._model_id = log_model(client, self.run_id, self._experiment(client), model)

        self._sender.put(send)
        if model.register is not None:
            self._last = lambda client: register_model(client, self.run_id, self._model_id, model)

    def log_metrics(
        self,
        metrics: Mapping[str, float | int | None],
        *,
        step: int,
        timestamp: float,
        of_model: bool = False,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """All metrics of one step in one call. The same point sent twice is stored once.

        Args:
            of_model: they are of the run's model, too, if it has one.
            dataset: name and digest of the text that they were measured on.
        """
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        self._sender.put(self._points(values, step, timestamp, of_model, dataset))

    def finish(
        self, *, succeeded: bool, artifacts: Sequence[Path], timeout_s: float | None = None
    ) -> bool:
        """Sends the rest.

        False: there is nothing to see there. The server did not take everything in time, and the
        same command with `resume=true` sends it again; or it refused the run itself.
        """
        for path in artifacts:
            self._sender.put(self._artifact(path))
        if not self.keeps_status:
            status = "FINISHED" if succeeded else "FAILED"
            self._sender.put(lambda client: client.set_terminated(self.run_id, status))
        if self._last is not None:  # another service, which must not keep the rest from there
            self._sender.put(self._last)
        self.is_behind = not self._sender.finish(
            FINISH_TIMEOUT_S if timeout_s is None else timeout_s
        )
        if not self.is_behind:
            return self._sender.is_connected
        log.warning(
            "MLflow at %s did not take everything; nothing is lost: %s sends it again",
            masked_url(self.uri),
            self.again,
        )
        return False

    @property
    def num_waiting(self) -> int:
        """Calls that the server has not taken yet."""
        return self._sender.num_waiting

    def left_out(self) -> list[str]:
        """What the server will never take, in words, for the end of a job."""
        reasons = self._sender.refusals
        said = [f"not in MLflow, which refuses it: {reason}" for reason in reasons[:MAX_SAID]]
        num_more = len(reasons) - len(said)
        return [*said, f"and {num_more} more"] if num_more else said

    def state(self) -> str:
        """In words, for people who watch."""
        waiting, problem = self.num_waiting, self._sender.problem
        if problem:
            return f"away ({problem[:100]}); {waiting} calls wait, nothing is lost"
        for reason in self._sender.refusals:
            return f"it refuses for good: {reason[:100]}"
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

    def _connect(self) -> Any:
        # It takes seconds to import, which the search need not wait for.
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = local_folder(self.uri)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(self.uri)
        if self.run_id is None:
            artifacts = (folder / "mlartifacts").as_uri() if folder is not None else None
            self.run_id = self._create_run(client, artifacts)
        else:
            self.experiment_id = client.get_run(self.run_id).info.experiment_id
            if not self.keeps_status:
                client.update_run(self.run_id, status="RUNNING")
        if not self._is_told:  # where that fails, the next attempt finds the run and tells again
            self.on_run_id(self.run_id)
            self._is_told = True
        return client

    def _create_run(self, client: Any, artifacts: str | None) -> str:
        found = client.get_experiment_by_name(self.experiment)
        self.experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(self.experiment, artifact_location=artifacts)
        )
        client.set_experiment_tag(self.experiment_id, *preset_view())
        run = client.create_run(
            self.experiment_id, start_time=round(self.started * 1000), run_name=self.run_name
        )
        return str(run.info.run_id)

    def _experiment(self, client: Any) -> str:
        """The id of the run's own: a point that goes on may be in another than is asked for now."""
        return str(client.get_run(self.run_id).info.experiment_id)

    def _set_view(self, client: Any) -> None:
        assert self.run_id is not None
        view = view_of_sweep(self.run_name, self.run_id, self._view)
        client.set_experiment_tag(self.experiment_id, *view)

    def _params(self, params: Sequence[tuple[str, Any]]) -> Call:
        """One that the server refuses does not keep the others from it."""

        def send(client: Any) -> None:
            from mlflow.entities import Param

            run = client.get_run(self.run_id)
            known, refused = run.data.params, dict[str, str]()

            def send_all(items: Sequence[Param]) -> None:
                try:
                    client.log_batch(self.run_id, params=items)
                except Exception as error:
                    if not is_refusal(error) or run.info.lifecycle_stage == "deleted":
                        raise
                    if len(items) == 1:
                        refused[items[0].key] = str(error)
                        return
                    for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                        send_all(half)

            new = [Param(name, str(value)) for name, value in params if name not in known]
            if new:
                send_all(new)
            if refused:  # their names first, since what is said ends with the line
                raise Refused(
                    f"parameter{'s' if len(refused) > 1 else ''} {', '.join(refused)}: "
                    + "; ".join(dict.fromkeys(refused.values()))
                )

        return send

    def _tags_and_inputs(
        self, tags: Mapping[str, str], datasets: Mapping[str, TokenDataset]
    ) -> Call:
        def send(client: Any) -> None:
            from mlflow.entities import RunTag

            sent = [RunTag(name, value) for name, value in {**tags, **self._parent_tag()}.items()]
            client.log_batch(self.run_id, tags=sent)
            if datasets:
                client.log_inputs(self.run_id, dataset_inputs(datasets))

        return send

    def _note(self, markdown: str, pictures: Sequence[str]) -> Call:
        def send(client: Any) -> None:
            assert self.run_id is not None
            said = client.get_run(self.run_id).data.tags.get(NOTE, "")
            note = with_section_of(said, MEASURED, with_pictures(markdown, self.run_id, pictures))
            client.set_tag(self.run_id, NOTE, note[:MAX_LENGTH])

        return send

    def _parent_tag(self) -> dict[str, str]:
        """Of the sweep, which is on its way to the same server unless that refuses it."""
        if self.parent is None:
            return {}
        while self.parent.run_id is None and not self.parent.left_out():
            if self._sender.pause(0.1):
                break
        return {} if self.parent.run_id is None else {PARENT: self.parent.run_id}

    def _points(
        self,
        values: Mapping[str, float],
        step: int,
        timestamp: float,
        of_model: bool,
        dataset: tuple[str, str] | None,
    ) -> Call:
        def send(client: Any) -> None:
            from mlflow.entities import Metric

            assert self.run_id is not None
            if of_model and self._model_id is None:
                self._model_id = find_model(client, self.run_id, self._experiment(client))
            model_id = self._model_id if of_model else None
            milliseconds = int(timestamp * 1000)
            points = [
                Metric(name, value, milliseconds, step, model_id, *(dataset or (None, None)))
                for name, value in values.items()
            ]
            client.log_batch(self.run_id, metrics=points)

        return send

    def _artifact(self, path: Path) -> Call:
        return lambda client: client.log_artifact(self.run_id, str(path))


def local_folder(uri: str) -> Path | None:
    """The folder of an SQLite tracking store, where its artifacts go too; None for servers."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).absolute().parent
