"""What arrives in MLflow, and what happens while it is away."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.config.redaction import masked_url, without_secrets
from pipelines.tracking.token_dataset import TokenDataset
from pipelines.tracking.tracker import Tracker
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search


def only_run(tmp_path: Path) -> tuple[MlflowClient, object]:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    return client, run


def test_a_run_is_described_in_full(ended: Outcome, tmp_path: Path) -> None:
    outcome = ended
    client, run = only_run(tmp_path)
    lines = [
        json.loads(line) for line in (outcome.folder / "trajectory.jsonl").read_text().splitlines()
    ]
    assert run.info.status == "FINISHED"
    for name, field in (
        ("perplexity", "perplexity"),
        ("nll", "nll"),
        ("ratio", "ratio"),
        ("num_parameters", "num_parameters"),
        ("flops_per_token", "flops_per_token"),
        ("margin", "margin"),
        ("margin_stderr", "margin_stderr"),
        ("seconds", "seconds"),
        ("evaluations", "evaluations"),
    ):
        points = {
            point.step: point.value
            for point in client.get_metric_history(run.info.run_id, f"prune/{name}")
            if point.step
        }
        assert points == {
            line["step"]: pytest.approx(line[field]) for line in lines if line[field] is not None
        }, name
    candidates = client.get_metric_history(run.info.run_id, "prune/num_candidates")
    assert [point.value for point in candidates] == [len(line["candidates"]) for line in lines]
    [dense] = [
        point.value
        for point in client.get_metric_history(run.info.run_id, "prune/perplexity")
        if point.step == 0
    ]
    assert dense == pytest.approx(outcome.summary["perplexity"]["block"]["dense"])
    params, tags = run.data.params, run.data.tags
    assert params["search.target_ratio"] == "0.25"
    assert params["model.path"].endswith("tiny-llama")
    assert {"cluster.kind", "calibration.source", "search.importance", "store.url"} <= set(params)
    assert tags["model.fingerprint"] == outcome.summary["identity"]["model"]
    assert tags["calibration.block.fingerprint"] == outcome.summary["identity"]["calibration.block"]
    assert tags["version.torch"].startswith("2.")
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        "tokens-block",
        "tokens-width",
        "tokens-heldout",
    }
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert artifacts == {
        "trajectory.jsonl",
        "shape.json",
        "pruning_config.json",
        "summary.json",
        "config.yaml",
        "trajectory.png",
        "shape.png",
    }
    assert run.data.metrics["result/heldout_perplexity"] == pytest.approx(
        outcome.summary["perplexity"]["heldout"]["pruned"]
    )


def test_resuming_goes_on_in_the_same_run_and_sends_no_point_twice(
    ended: Outcome, search: Search, tmp_path: Path
) -> None:
    path = ended.folder / "trajectory.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    outcome = search("resume=true", bare=True)
    client, run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "prune/perplexity")
    assert sorted({point.step for point in history}) == list(range(len(outcome.trajectory) + 1))
    assert len([point for point in history if point.step <= 4]) == 5


def test_a_server_that_is_away_costs_nothing(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends as ever and says what to do; resuming sends all once MLflow is back."""
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 1.0)
    started = time.monotonic()
    outcome = search("tracking.uri=http://127.0.0.1:9")
    assert outcome.status == 0, outcome.output
    assert time.monotonic() - started < 60
    assert "the search goes on, sending is tried again" in outcome.output
    assert f"resume=true output_dir={outcome.folder} sends it again" in outcome.output
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 60.0)
    again = search("resume=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", bare=True)
    assert again.status == 0, again.output
    client, run = only_run(tmp_path)
    assert [
        point.step for point in client.get_metric_history(run.info.run_id, "prune/nll")
    ] == list(range(len(outcome.trajectory) + 1))


def test_a_server_that_never_answers_slows_no_step(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing, as one that is overloaded."""
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        started = time.monotonic()
        outcome = search(f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}")
        assert outcome.status == 0, outcome.output
        assert time.monotonic() - started < 60, "the search waited for MLflow"
    for thread in threading.enumerate():
        if thread.name == "tracking":  # its call ends with the connection
            thread.join(60)
    assert f"resume=true output_dir={outcome.folder} sends it again" in outcome.output
    slowest = max(
        json.loads(line)["seconds"]
        for line in (outcome.folder / "trajectory.jsonl").read_text().splitlines()
    )
    assert slowest < 30


def test_calls_return_at_once_and_points_arrive_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tracking.sender._RETRY_S", (0.05,))
    connect, away = Tracker._connect, [True]

    def flaky(self: Tracker) -> object:
        if away[0]:
            raise ConnectionError("connection refused")
        return connect(self)

    monkeypatch.setattr(Tracker, "_connect", flaky)
    ids: list[str] = []
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "test", "name", 1.8e9, None, ids.append)
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        tracker.start(
            {"a": 1}, {"b": "2"}, {"block": TokenDataset("set", "digest", {"path": None}, 4, 32)}
        )
        for step in range(5):
            tracker.log_metrics(
                {"prune/ratio": step / 10, "prune/margin": None}, step=step, timestamp=1.8e9 + step
            )
        assert time.monotonic() - started < 0.5
        time.sleep(0.3)
        away[0] = False
        assert tracker.finish(succeeded=True, artifacts=[])
    assert caplog.text.count("connection refused") == 1
    client, run = only_run(tmp_path)
    assert ids == [run.info.run_id]
    assert [point.value for point in client.get_metric_history(ids[0], "prune/ratio")] == [
        0.0,
        0.1,
        0.2,
        0.3,
        0.4,
    ]
    assert client.get_metric_history(ids[0], "prune/ratio")[0].timestamp == 1.8e12


def test_passwords_are_masked() -> None:
    assert "secret" not in masked_url("postgresql://me:secret@db/scores")
    assert "secret" not in masked_url("https://me:secret@mlflow.example.org:5000")
    assert masked_url("sqlite:///outputs/mlflow.db") == "sqlite:///outputs/mlflow.db"
    assert (
        without_secrets("cannot reach https://me:secret@x", "https://me:secret@x")
        == "cannot reach https://me:***@x"
    )


def test_a_password_is_nowhere_in_what_a_run_leaves(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searched for in every file of the folder and in all output, while the server that it is for
    refuses connections.
    """
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 3.0)
    outcome = search("tracking.uri=http://me:hunter2@127.0.0.1:9")
    assert outcome.status == 0, outcome.output
    assert "127.0.0.1:9" in outcome.output
    assert "hunter2" not in outcome.output
    for path in outcome.folder.iterdir():
        assert b"hunter2" not in path.read_bytes(), path.name
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 60.0)
    assert (
        search("resume=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", bare=True).status == 0
    )
