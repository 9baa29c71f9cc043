"""`multipruner jobs`, `logs` and `stop` against what answers as a cluster's dashboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dashboard import TOKEN, Dashboard, dashboard
from tests.pipelines.conftest import Cli

ENTRYPOINT = "multipruner prune 'output_dir=/runs/it is' cluster=ray"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def board() -> Iterator[Dashboard]:
    with dashboard() as found:
        found.add("a-prune-1", "FAILED", ENTRYPOINT, multipruner="0.1.0", output_dir="/runs/it is")
        found.add("a-prune-2", "RUNNING", ENTRYPOINT, multipruner="0.1.0", output_dir="/runs/it is")
        found.add("raysubmit_1", "RUNNING", "python train.py")
        yield found


def test_the_jobs_of_this_project_are_listed(cli: Cli, board: Dashboard) -> None:
    outcome = cli("jobs", "--address", board.address, folder=None)
    assert outcome.status == 0, outcome.output
    rows = [line.split("│") for line in outcome.output.splitlines() if line.startswith("│")]
    assert [[row[1].strip(), row[2].strip(), row[-2].strip()] for row in rows] == [
        ["a-prune-1", "failed", "/runs/it is"],
        ["a-prune-2", "running", "/runs/it is"],
    ]
    assert rows[0][4].strip() == "42 s"
    board.jobs.clear()
    outcome = cli("jobs", "--address", board.address, folder=None)
    assert outcome.output == f"no jobs of multipruner at http://{board.address}\n"


def test_logs_are_printed_as_they_are(cli: Cli, board: Dashboard) -> None:
    outcome = cli("logs", "a-prune-1", "--address", board.address, folder=None)
    assert (outcome.status, outcome.output) == (0, "what a-prune-1 wrote\n")


@pytest.mark.parametrize(("job", "status"), [("a-prune-1", 1), ("a-prune-2", 0)])
def test_a_log_that_is_followed_ends_with_the_fate_of_the_job(
    cli: Cli, board: Dashboard, monkeypatch: pytest.MonkeyPatch, job: str, status: int
) -> None:
    monkeypatch.setattr(
        "workers.cluster.jobs.Jobs.follow", lambda _, job_id, write: write(f"{job_id} says\n")
    )
    if status == 0:
        board.add(job, "SUCCEEDED", ENTRYPOINT, multipruner="0.1.0")
    outcome = cli("logs", job, "--follow", "--address", board.address, folder=None)
    assert outcome.status == status
    assert outcome.output.startswith(f"{job} says\n")
    again = f"multipruner submit --address {board.address} prune 'output_dir=/runs/it is'"
    assert outcome.errors == ([f"error: {job}: failed: it is failed"] if status else [])
    assert (f"To go on: {again} cluster=ray" in outcome.output) == bool(status)


def test_a_job_is_stopped(cli: Cli, board: Dashboard) -> None:
    outcome = cli("stop", "a-prune-2", "--address", board.address, folder=None)
    assert outcome.status == 0, outcome.output
    assert outcome.output.splitlines() == [
        "a-prune-2: stopping; what it computed is kept",
        f"  how it ends: multipruner logs a-prune-2 --address {board.address}",
        f"  to go on:    multipruner submit --address {board.address} prune "
        "'output_dir=/runs/it is' cluster=ray",
    ]
    outcome = cli("stop", "a-prune-1", "--address", board.address, folder=None)
    assert outcome.output == "a-prune-1: over already (failed)\n"


@pytest.mark.parametrize("command", ["logs", "stop"])
def test_a_job_that_is_not_there(cli: Cli, board: Dashboard, command: str) -> None:
    outcome = cli(command, "b-prune-1", "--address", board.address, folder=None)
    assert outcome.status == 2
    assert outcome.errors == [
        f"error: b-prune-1: no such job at http://{board.address}; multipruner jobs lists them"
    ]
    outcome = cli(command, "--address", board.address, folder=None)
    assert outcome.status == 2
    assert "the following arguments are required: job" in outcome.output


def test_what_the_cluster_says_wrong_ends_with_1(
    cli: Cli, board: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = cli("jobs", "--address", board.address, folder=None)
    assert connected.status == 0
    answer = Dashboard.answer
    monkeypatch.setattr(
        Dashboard,
        "answer",
        lambda self, method, path, body: (
            (500, "no agent") if path == "/api/jobs/" else answer(self, method, path, body)
        ),
    )
    outcome = cli("jobs", "--address", board.address, folder=None)
    assert outcome.status == 1
    assert outcome.errors == [
        f"error: http://{board.address}: Request failed with status code 500: no agent"
    ]


def test_a_token_on_an_open_road_is_warned_of(
    cli: Cli, board: Dashboard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.cluster.jobs._is_loopback", lambda _: False)
    assert cli("jobs", "--address", board.address, folder=None).status == 0
    assert caplog.messages == [
        f"http://{board.address}: the token travels unencrypted; on a network that others use, "
        "reach the dashboard through ssh -L or https"
    ]
