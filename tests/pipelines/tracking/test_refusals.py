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
from pipelines.tracking.refusal import Refused, is_refusal
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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those between two attempts, in seconds; they are cut short."""
    found: list[float] = []

    def wait(own: Sender, seconds: float) -> None:
        found.append(seconds)
        own.pause(0.01)

    monkeypatch.setattr(Sender, "_wait", wait)
    return found


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_all(tracker: Tracker, params: dict[str, Any] | None = None) -> bool:
    """What `finish` says of a run with three points."""
    tracker.start(params or {"a": 1}, {"tag": "here"}, {})
    for step in range(3):
        tracker.log_metrics({"ratio": step / 10}, step=step, timestamp=1.8e9 + step)
    return tracker.finish(succeeded=True, artifacts=[])


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
    tracker: MakeTracker,
    mlflow: MlflowClient,
    caplog: pytest.LogCaptureFixture,
    pauses: list[float],
    is_gone: bool,
) -> None:
    """In MLflow's bin, or for ever. It is said once, and nothing waits for it."""
    first = tracker()
    assert send_all(first)
    assert not pauses
    assert first.run_id is not None
    mlflow.delete_run(first.run_id)
    again = tracker("0" * 32 if is_gone else first.run_id)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert not send_all(again)
    assert len(pauses) == 1, "a refusal is asked for twice, and every other one not"
    assert again.num_waiting == 0
    assert caplog.text.count("refuses for good") == 1
    assert "sends it again" not in caplog.text
    [said] = again.left_out()
    assert ("not found" if is_gone else "must be in the 'active' state") in said
    assert again.state().startswith("it refuses for good: ")


def test_a_run_that_is_deleted_meanwhile(
    tracker: MakeTracker, mlflow: MlflowClient, pauses: list[float]
) -> None:
    searched = tracker()
    searched.start({}, {}, {})
    until(lambda: searched.run_id is not None and not searched.num_waiting)
    assert searched.run_id is not None
    mlflow.delete_run(searched.run_id)
    for step in range(50):
        searched.log_metrics({"ratio": step / 50}, step=step, timestamp=1.8e9)
    searched.finish(succeeded=True, artifacts=[])
    assert len(pauses) <= 2, "not one for each of the calls"
    assert searched.num_waiting == 0
    assert len(searched.left_out()) == 1


def test_a_parameter_above_a_limit(
    tracker: MakeTracker,
    mlflow: MlflowClient,
    caplog: pytest.LogCaptureFixture,
    pauses: list[float],
) -> None:
    """It alone is left out; what comes with and after it arrives."""
    name = "n" * 300
    params = (
        {f"before.{i}": i for i in range(70)} | {name: 1} | {f"after.{i}": i for i in range(70)}
    )
    sent = tracker()
    assert send_all(sent, params)
    assert len(pauses) == 1
    run = mlflow.get_run(sent.run_id)
    assert run.data.params == {key: str(value) for key, value in params.items() if key != name}
    assert run.data.tags["tag"] == "here"
    assert run.data.metrics["ratio"] == 0.2
    assert run.info.status == "FINISHED"
    [said] = sent.left_out()
    assert f"parameter {name[:200]}" in said
    assert caplog.text.count("refuses for good") == 1


def test_parameters_above_a_limit_are_all_named(tracker: MakeTracker) -> None:
    """What is said of a refusal is one line that ends somewhere: names come before reasons."""
    names = [f"{letter * 100}/{{}}" for letter in "ab"]  # braces are no letters of a name
    sent = tracker()
    send_all(sent, dict.fromkeys(names, 1))
    [said] = sent.left_out()
    assert f"parameters {', '.join(names)}: " in said


def test_many_refusals_are_counted(
    tracker: MakeTracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_RETRY_S", (0.01,))
    many = tracker()
    for number in range(8):
        many._sender.put(lambda _, number=number: (_ for _ in ()).throw(Refused(f"no {number}")))
    assert send_all(many)
    said = [f"not in MLflow, which refuses it: no {number}" for number in range(5)]
    assert many.left_out() == [*said, "and 3 more"]
    assert caplog.text.count("refuses for good") == 5


def test_what_failed_after_the_run_was_made_is_made_up_for(
    mlflow: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the run is to be remembered, the server away when it gets its view."""
    monkeypatch.setattr(sender, "_RETRY_S", (0.01,))
    set_tag, told, failing = MlflowClient.set_experiment_tag, list[str](), {"disk", "view"}

    def fails_once(what: str) -> None:
        if what in failing:
            failing.remove(what)
            raise OSError(f"no {what}")

    def set_or_fail(client: MlflowClient, experiment: str, key: str, value: str) -> None:
        if "-" in key:
            fails_once("view")
        set_tag(client, experiment, key, value)

    def tell(run_id: str) -> None:
        fails_once("disk")
        told.append(run_id)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", set_or_fail)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sweep = Tracker(uri, "test", "name", 1.8e9, None, tell, is_sweep=True)
    assert send_all(sweep)
    assert not failing
    assert told == [sweep.run_id]
    [run] = mlflow.search_runs([mlflow.get_experiment_by_name("test").experiment_id])
    assert run.info.run_id == sweep.run_id
    tags = mlflow.get_experiment_by_name("test").tags
    assert [key for key in tags if key.endswith(f"multipruner-{sweep.run_id}")]


def test_the_point_of_a_sweep_does_not_wait_for_a_parent_that_is_refused(
    tracker: MakeTracker, pauses: list[float]
) -> None:
    parent = tracker(is_sweep=True)
    parent._sender._connect = lambda: (_ for _ in ()).throw(of_server(403))
    parent.start({}, {}, {})
    point = tracker(parent=parent)
    assert send_all(point)
    assert len(pauses) == 1, "of the parent"
    assert not parent.finish(succeeded=True, artifacts=[])


def test_the_search_says_at_its_end_what_is_not_in_mlflow(
    ended: Outcome, search: Search, mlflow: MlflowClient, pauses: list[float]
) -> None:
    mlflow.delete_run(ended.read("run.json")["mlflow_run_id"])
    outcome = search("resume=true", bare=True)
    assert outcome.status == 0, outcome.output
    assert len(pauses) <= 2, "60 s of silence at each resume"
    assert "not in MLflow, which refuses it: The run" in outcome.output
    assert "in MLflow: mlflow ui" not in outcome.output


class Clock:
    """Time as `Sender.finish` sees it, which goes on by `step_s` whenever it is looked at."""

    def __init__(self) -> None:
        self.now, self.step_s, self.num_looks = 0.0, 0.1, 0

    def monotonic(self) -> float:
        self.now += self.step_s
        self.num_looks += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Somebody who waits no longer than a second for a server that takes nothing."""
    clock = Clock()
    values = {"_STALLED_S": 1.0, "_SILENT_S": 0.2, "_HURRY_S": 0.1, "time": clock}
    for name, value in values.items():
        monkeypatch.setattr(sender, name, value)
    return clock


def test_a_dead_server_is_not_waited_for_in_silence(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Sender("http://me:hush@127.0.0.1:9", lambda: (_ for _ in ()).throw(OSError("refused")))
    dead.start()
    for _ in range(3):
        dead.put(lambda client: None)
    until(lambda: dead.problem)
    with caplog.at_level(logging.INFO):
        assert not dead.finish(60)
    assert 0.9 < clock.now < 2
    [said] = [each for each in caplog.messages if each.startswith("waiting up to ")]
    assert said.startswith("waiting up to 60 s for MLflow at http://me:***@127.0.0.1:9")
    assert said.endswith(("3 calls left (refused)", "2 calls left (refused)"))


def test_a_slow_server_that_takes_something_is_waited_for(clock: Clock) -> None:
    """Each call takes 0.8 s, in which `finish` looks at the clock."""
    clock.step_s = 0.0
    slow, taken = Sender("x", lambda: SimpleNamespace()), list[int]()

    def take(number: int) -> None:
        clock.now += 0.8
        seen = clock.num_looks + 2
        until(lambda: clock.num_looks >= seen)
        taken.append(number)

    for number in range(5):
        slow.put(lambda _, number=number: take(number))
    slow.start()
    assert slow.finish(60)
    assert taken == [0, 1, 2, 3, 4]


def test_the_end_does_not_sleep_through_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is back is asked at once, not when the pause between two attempts is over."""
    monkeypatch.setattr(sender, "_RETRY_S", (600.0,))
    answers = [OSError("away")]

    def call(_: object) -> None:
        if answers:
            raise answers.pop()

    back = Sender("x", lambda: SimpleNamespace())
    back.start()
    back.put(call)
    until(lambda: back.problem)
    assert back.finish(60), "it gives up before the pause is over"
