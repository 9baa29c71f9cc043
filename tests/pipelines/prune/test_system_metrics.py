"""Samples of how busy a machine is, in MLflow."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipelines.prune import system_metrics
from tests.pipelines.conftest import Cli, Search

ON = "tracking.system_metrics=true"


def samples(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each, by name."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if name.startswith("system/")
    }


def test_machine_driver_and_evaluators(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "EVERY_S", 0.0)
    outcome = search(ON)
    assert outcome.status == 0, outcome.output
    found = samples(tmp_path)
    memory = psutil.virtual_memory().total / 1e6
    [*_, (_, used)] = found["system/system_memory_usage_megabytes"]
    assert 0 < used < memory
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage"} <= set(found)
    own = psutil.Process(os.getpid()).memory_info().rss / 1e6
    for name in ("driver", "evaluator_0"):  # inline: one process
        rows = found[f"system/{name}_memory_usage_megabytes"]
        assert len(rows) > 1
        assert own / 4 < rows[-1][1] < 4 * own
        assert f"system/{name}_cpu_utilization_percentage" in found
        assert [step for step, _ in rows] == sorted(step for step, _ in rows)
        assert rows[-1][0] < 3600, "seconds of the search"


class Sent:
    """In the place of a tracker."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, values: dict[str, float], *, step: int, timestamp: float) -> None:
        self.steps.append(len(values))


class NoEvaluators:
    def states(self) -> list[object]:
        return []


def test_samples_are_ten_seconds_apart() -> None:
    sent, times = Sent(), [0.0, 3.0, 9.9, 10.0, 19.0, 20.0]
    clock = iter(times)
    observer = system_metrics.SystemMetrics(sent, 0.0, clock=lambda: next(clock))
    counts = []
    for _ in times:
        observer.waiting(NoEvaluators())
        counts.append(len(sent.steps))
    assert counts == [1, 1, 1, 2, 2, 3]


def test_a_monitor_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect_metrics(self) -> None:
            raise OSError("lost the device")

    sent, clock = Sent(), iter([0.0, 20.0])
    observer = system_metrics.SystemMetrics(sent, 0.0, clock=lambda: next(clock))
    observer._monitors = [Broken(), *system_metrics._monitors()]
    with caplog.at_level("WARNING"):
        observer.waiting(NoEvaluators())
        observer.waiting(NoEvaluators())
    assert [each for each in caplog.messages if "lost" in each] == [
        "system metrics without Broken: lost the device"
    ]
    assert len(sent.steps) == 2
    assert min(sent.steps) > 5, "the others are there"


def test_none_unless_asked_for(search: Search, tmp_path: Path) -> None:
    assert search().status == 0
    assert samples(tmp_path) == {}


@pytest.mark.parametrize("command", ["evaluate", "recover"])
def test_only_a_search_has_them(cli: Cli, command: str, tmp_path: Path) -> None:
    outcome = cli(command, f"run={tmp_path}", ON)
    assert outcome.status == 2
    assert "tracking.system_metrics: is of searches; give it to prune or sweep" in outcome.output
