"""An MLflow that is there and will never take something, or that is gone when a search ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.utils.rest_utils import verify_rest_response
from requests import HTTPError, Response

from pipelines.tracking import sender
from pipelines.tracking.refusal import is_refusal
from pipelines.tracking.sender import Sender
from pipelines.tracking.tracker import Tracker
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search

MakeTracker = Callable[..., Tracker]


@pytest.fixture
def mlflow(store_and_tracking: list[str], tmp_path: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def tracker(mlflow: MlflowClient, tmp_path: Path) -> MakeTracker:
    """`tracker("RUN_ID")` goes on with a run; None makes one."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def make(run_id: str | None = None, **options: Any) -> Tracker:
        return Tracker(uri, "test", "name", 1.8e9, run_id, lambda _: None, **options)

    return make


def send_all(tracker: Tracker, params: dict[str, Any] | None = None) -> tuple[bool, float]:
    """What `finish` says of a run with three points, and seconds."""
    started = time.monotonic()
    tracker.start(params or {"a": 1}, {"tag": "here"}, {})
    for step in range(3):
        tracker.log_metrics({"ratio": step / 10}, step=step, timestamp=1.8e9 + step)
    return tracker.finish(succeeded=True, artifacts=[]), time.monotonic() - started


def of_server(status: int, body: str = "proxy says no") -> Exception:
    response = Response()
    response.status_code, response._content = status, body.encode()
    with pytest.raises(MlflowException) as caught:
        verify_rest_response(response, "/api")
    return caught.value


def of_artifacts(status: int) -> Exception:
    response = Response()
    response.status_code = status
    with pytest.raises(HTTPError) as caught:
        response.raise_for_status()
    return caught.value


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_refused_for_good(status: int) -> None:
    assert is_refusal(of_artifacts(status))
    if status != 413:  # of which MLflow makes an internal error, when it has no words of its own
        assert is_refusal(of_server(status))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_temporary(status: int) -> None:
    assert not is_refusal(of_artifacts(status))
    assert not is_refusal(of_server(status))


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("RESOURCE_DOES_NOT_EXIST", True),
        ("INVALID_PARAMETER_VALUE", True),
        ("PERMISSION_DENIED", True),
        ("RESOURCE_ALREADY_EXISTS", False),  # another search has just made the experiment
        ("TEMPORARILY_UNAVAILABLE", False),
        ("REQUEST_LIMIT_EXCEEDED", False),
        ("INTERNAL_ERROR", False),
    ],
)
def test_codes_of_mlflow(code: str, refused: bool) -> None:
    assert is_refusal(MlflowException("no", error_code=ErrorCode.Value(code))) is refused
    assert is_refusal(RestException({"error_code": code, "message": "no"})) is refused


def test_what_is_no_answer_is_temporary() -> None:
    assert not is_refusal(ConnectionError("refused"))
    assert not is_refusal(HTTPError("no response at all"))


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_run_that_was_deleted(
    tracker: MakeTracker, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture, is_gone: bool
) -> None:
    """In MLflow's bin, or for ever. It is said once, and nothing waits for it."""
    first = tracker()
    assert send_all(first) == (True, pytest.approx(0, abs=30))
    assert first.run_id is not None
    mlflow.delete_run(first.run_id)
    again = tracker("0" * 32 if is_gone else first.run_id)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        is_there, seconds = send_all(again)
    assert not is_there
    assert seconds < 10
    assert again.num_waiting == 0
    assert caplog.text.count("refuses for good") == 1
    assert "sends it again" not in caplog.text
    [said] = again.left_out()
    assert ("not found" if is_gone else "must be in the 'active' state") in said
    assert again.state().startswith("it refuses for good: ")


def test_a_run_that_is_deleted_meanwhile(tracker: MakeTracker, mlflow: MlflowClient) -> None:
    searched = tracker()
    searched.start({}, {}, {})
    while searched.num_waiting or searched.run_id is None:
        time.sleep(0.01)
    mlflow.delete_run(searched.run_id)
    started = time.monotonic()
    for step in range(50):
        searched.log_metrics({"ratio": step / 50}, step=step, timestamp=1.8e9)
    searched.finish(succeeded=True, artifacts=[])
    assert time.monotonic() - started < 15
    assert searched.num_waiting == 0
    assert len(searched.left_out()) == 1


def test_a_parameter_above_a_limit(
    tracker: MakeTracker, mlflow: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It alone is left out; what comes with and after it arrives."""
    name = "n" * 300
    params = (
        {f"before.{i}": i for i in range(70)} | {name: 1} | {f"after.{i}": i for i in range(70)}
    )
    sent = tracker()
    is_there, seconds = send_all(sent, params)
    assert is_there
    assert seconds < 30
    run = mlflow.get_run(sent.run_id)
    assert run.data.params == {key: str(value) for key, value in params.items() if key != name}
    assert run.data.tags["tag"] == "here"
    assert run.data.metrics["ratio"] == 0.2
    assert run.info.status == "FINISHED"
    [said] = sent.left_out()
    assert f"parameter {name[:200]}" in said
    assert caplog.text.count("refuses for good") == 1


def test_the_point_of_a_sweep_does_not_wait_for_a_parent_that_is_refused(
    tracker: MakeTracker,
) -> None:
    parent = tracker(is_sweep=True)
    parent._sender._connect = lambda: (_ for _ in ()).throw(of_server(403))
    parent.start({}, {}, {})
    point = tracker(parent=parent)
    is_there, seconds = send_all(point)
    assert is_there
    assert seconds < 10
    assert not parent.finish(succeeded=True, artifacts=[])


def test_the_search_says_at_its_end_what_is_not_in_mlflow(
    ended: Outcome, search: Search, mlflow: MlflowClient
) -> None:
    mlflow.delete_run(ended.read("run.json")["mlflow_run_id"])
    started = time.monotonic()
    outcome = search("resume=true", bare=True)
    assert outcome.status == 0, outcome.output
    assert time.monotonic() - started < 40, "60 s of silence at each resume"
    assert "not in MLflow, which refuses it: The run" in outcome.output
    assert "in MLflow: mlflow ui" not in outcome.output


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_STALLED_S": 1.0, "_SILENT_S": 0.2, "_HURRY_S": 0.1}.items():
        monkeypatch.setattr(sender, name, value)


def test_a_dead_server_is_not_waited_for_in_silence(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Sender("http://me:hush@127.0.0.1:9", lambda: (_ for _ in ()).throw(OSError("refused")))
    dead.start()
    for _ in range(3):
        dead.put(lambda client: None)
    started = time.monotonic()
    with caplog.at_level(logging.INFO):
        assert not dead.finish(60)
    assert 0.9 < time.monotonic() - started < 5
    [said] = [each for each in caplog.messages if each.startswith("waiting up to ")]
    assert said.startswith("waiting up to 60 s for MLflow at http://me:***@127.0.0.1:9")
    assert said.endswith(("3 calls left (refused)", "2 calls left (refused)"))


def test_a_slow_server_that_takes_something_is_waited_for(impatient: None) -> None:
    slow, taken = Sender("x", lambda: SimpleNamespace()), list[int]()
    slow.start()
    for number in range(5):
        slow.put(lambda _, number=number: (time.sleep(0.5), taken.append(number)))
    assert slow.finish(60)
    assert taken == [0, 1, 2, 3, 4]


def test_the_end_does_not_sleep_through_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is back is asked at once, not when the pause between two attempts is over."""
    monkeypatch.setattr(sender, "_RETRY_S", (60.0,))
    answers = [OSError("away")]

    def call(_: object) -> None:
        if answers:
            raise answers.pop()

    back = Sender("x", lambda: SimpleNamespace())
    back.start()
    back.put(call)
    while not back.problem:
        time.sleep(0.01)
    started = time.monotonic()
    assert back.finish(60)
    assert time.monotonic() - started < 5
