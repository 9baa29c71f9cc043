"""The Jobs API of a cluster: which address, which token, and what is said where it fails."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pruning.errors import InputError
from tests.dashboard import TOKEN, Dashboard, dashboard
from tests.ray_nodes import free_port
from workers.cluster import jobs as client
from workers.cluster.jobs import Jobs, JobsError, dashboard_url


@pytest.fixture(autouse=True)
def _no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks, too


@pytest.fixture
def board() -> Iterator[Dashboard]:
    with dashboard() as found:
        yield found


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head", "http://head:8265"),
        ("10.0.0.5:80", "http://10.0.0.5:80"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("https://ray.example.org", "https://ray.example.org:443"),
        ("https://example.org/my/ray/", "https://example.org:443/my/ray"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert dashboard_url(address) == url


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "Ray Client server; give that of the dashboard, HOST:8265"),
        ("me:secret@head:8265", "holds a user or a password"),
        ("head:99999", "'head:99999' is neither HOST:PORT"),
        ("head:0", "'head:0' is neither HOST:PORT"),
        ("ftp://head", "nor an http or https URL"),
        ("", "'' is neither HOST:PORT"),
    ],
)
def test_addresses_that_are_none(address: str, words: str) -> None:
    with pytest.raises(InputError, match="^--address: ") as error:
        dashboard_url(address)
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_a_job_from_its_start_to_its_end(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the address that is given, whatever the environment says of another."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    jobs = Jobs(board.address)
    assert jobs.list() == ()
    entrypoint = "multipruner prune 'a=b c' \"d='e'\""
    found = jobs.submit(entrypoint, submission_id="mine-1", metadata={"a": "b"}, stop_s=30)
    assert found == "mine-1"
    [body] = board.submitted
    assert body["entrypoint"] == entrypoint
    assert body["metadata"] == {"a": "b"}
    assert body["runtime_env"] == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}
    assert TOKEN not in str(body)
    [job] = jobs.list()
    assert (job.submission_id, job.status, job.is_over) == ("mine-1", "PENDING", False)
    assert job == jobs.find("mine-1")
    assert jobs.logs("mine-1") == "what mine-1 wrote\n"
    assert jobs.stop("mine-1")
    board.add("mine-1", "STOPPED", entrypoint)
    assert jobs.find("mine-1").is_over
    assert not jobs.stop("mine-1")
    assert board.tokens[0] == ""
    assert set(board.tokens[1:]) == {TOKEN}


def test_a_cluster_that_asks_for_no_token_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with dashboard(token=None) as board:
        jobs = Jobs(board.address)
        jobs.list()
    assert jobs.is_open
    assert set(board.tokens) == {""}


def test_without_a_token_and_with_a_wrong_one(
    board: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"wants a token, and there is none here\. Give it by"):
        Jobs(board.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 40)
    with pytest.raises(InputError, match="does not accept our token") as error:
        Jobs(board.address)
    assert "f" * 40 not in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert not Jobs(board.address).is_open


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LISTEN_S", 0.5)
    started = time.monotonic()
    with pytest.raises(
        InputError, match=r"nothing answers at http://127\.0\.0\.1:\d+ within 0.5 s"
    ):
        Jobs(f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="nothing answers at http://no-such-host.invalid:8265"):
        Jobs("no-such-host.invalid")
    assert time.monotonic() - started < 10


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,  # accepts, and says nothing
        pytest.raises(InputError, match="does not answer as the dashboard") as error,
    ):
        Jobs(f"127.0.0.1:{mute.getsockname()[1]}")
    assert "timed out" in str(error.value)
    with dashboard(token=None) as board:
        monkeypatch.setattr(Dashboard, "answer", lambda *_: (404, "Not Found"))
        with pytest.raises(InputError, match="as the dashboard .*: HTTP status 404$"):
            Jobs(board.address)
        monkeypatch.setattr(Dashboard, "answer", lambda *_: (200, "<html>"))
        with pytest.raises(InputError, match="does not answer as the dashboard"):
            Jobs(board.address)


def test_a_job_that_is_not_there(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    jobs = Jobs(board.address)
    for ask in (jobs.find, jobs.logs, jobs.stop):
        with pytest.raises(InputError, match=r"^other-1: no such job at .*; multipruner jobs"):
            ask("other-1")


def test_what_the_cluster_refuses_is_said_in_one_line(
    board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    jobs = Jobs(board.address)
    trace = 'Traceback (most recent call last):\n  File "x"\nValueError: Job a-1 already exists.\n'
    monkeypatch.setattr(Dashboard, "answer", lambda *_: (500, trace))
    with pytest.raises(JobsError) as error:
        jobs.submit("true", submission_id="a-1", metadata={}, stop_s=1)
    url = f"http://{board.address}"
    said = f"{url}: Request failed with status code 500: ValueError: Job a-1 already exists"
    assert str(error.value) == said


def test_a_cluster_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with dashboard() as board:
        jobs = Jobs(board.address)
    with pytest.raises(JobsError, match="Connection refused"):
        jobs.list()


@pytest.mark.parametrize(
    ("address", "unencrypted"),
    [("127.0.0.1", False), ("localhost", False), ("10.1.2.3", True), ("https://10.1.2.3", False)],
)
def test_who_else_can_read_what_is_sent(
    address: str, unencrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_wait_for", lambda *_, **__: None)
    monkeypatch.setattr(client, "_is_open", lambda _: True)
    monkeypatch.setattr(client, "_Client", lambda *_, **__: None)
    assert Jobs(address).is_unencrypted is unencrypted
