"""What `pipelines.status` says of a search that runs, has ended, or was killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.console import console
from pipelines.runs import folder as folder_module
from pipelines.runs.files import STATUS
from pipelines.runs.folder import RunFolder
from pipelines.status.command import read_status
from pipelines.status.status_file import Heartbeat
from pruning.errors import InputError, TargetNotReached
from pruning.scoring.arithmetic import Arithmetic
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from workers.pool.faults import Fault, FaultLog
from workers.pool.protocol import EvaluatorState
from workers.pool.task_times import TaskTimeModel
from workers.tasks import EvaluatorInfo


class FakePool:
    """Two evaluators, one of them new, and a fault."""

    task_times = TaskTimeModel(4)

    def __init__(self) -> None:
        self.faults = FaultLog(num_lost_evaluations=7, num_speculative_tasks=2, num_oom_splits=1)
        self.faults.add(
            Fault(
                1.8e9,
                "node lost",
                "evaluator 3 on c (10.0.0.3)",
                "its node has died",
                "another one takes its place",
            )
        )

    def states(self) -> list[EvaluatorState]:
        arithmetic = Arithmetic(device="cuda NVIDIA H100", num_threads=1)
        info = EvaluatorInfo(4242, "gpu-node (10.0.0.2)", ("5",), arithmetic)
        return [
            EvaluatorState(0, "working", info, "block batch 3: mlp 7", 12, 34.56),
            EvaluatorState(4, "waiting for resources", None, "", 0, 0.0),
        ]


@pytest.fixture
def show(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`show(FOLDER, "--json")` is what the command prints."""
    monkeypatch.setattr(console, "_width", 160)
    return lambda *words: cli("status", *words, folder=None).output


@pytest.fixture
def running(tmp_path: Path) -> tuple[RunFolder, Heartbeat]:
    folder = RunFolder(str(tmp_path / "run"))
    heartbeat = Heartbeat(folder, target_ratio=0.2)
    heartbeat.beat(step=12, stage="mlp_channels", ratio=0.085, perplexity=17.25)
    heartbeat.beat(
        FakePool(),
        now=True,
        state="running",
        rate=2.5,
        left_s=3700.0,
        evaluations={"scored": 1234, "reused": 56},
        tracking="up to date",
    )  # type: ignore[arg-type]
    return folder, heartbeat


def test_a_running_search(running: tuple[RunFolder, Heartbeat], show: Callable[..., str]) -> None:
    text = show(running[0].path)
    for words in (
        "running",
        "12 (mlp_channels): ratio 8.50% of 20.00%, perplexity 17.250",
        "2.50 candidates/s, 1 h 01 min left",
        "1,234 scored, 56 from the store, 7 lost",
        "working",
        "gpu-node (10.0.0.2)",
        "4242",
        "cuda NVIDIA H100 5",
        "block batch 3: mlp 7",
        "waiting for resources",
        "1 node lost",
        "2 late tasks were given to a second evaluator",
        "up to date",
        "evaluator 3 on c (10.0.0.3): node lost (its node has died); another one takes its place",
    ):
        assert words in text, text


def test_for_programs(running: tuple[RunFolder, Heartbeat], show: Callable[..., str]) -> None:
    data: dict[str, Any] = json.loads(show(running[0].path, "--json"))
    assert data["alive"] is True
    assert data["faults"] == {"node lost": 1}
    assert data["lost_evaluations"] == 7
    assert data["speculative_tasks"] == data["copied_tasks"] == 2  # the second is its name in 0.1
    assert data["oom_splits"] == data["halved_tasks"] == 1
    assert data["evaluators"][0]["busy_s"] == 34.6
    assert data["evaluators"][1] == {
        "number": 4,
        "state": "waiting for resources",
        "task": "",
        "num_tasks": 0,
        "busy_s": 0.0,
    }


def test_a_driver_that_is_gone(
    running: tuple[RunFolder, Heartbeat], show: Callable[..., str]
) -> None:
    folder, _ = running
    file = folder.path / STATUS
    file.write_text(json.dumps(json.loads(file.read_text()) | {"updated": time.time() - 100}))
    assert read_status(folder.path)["alive"], "silent, but it holds the folder"
    assert "has said nothing for 1 min 40 s" in show(folder.path)
    folder.release()
    text = show(folder.path)
    assert "interrupted: its driver" in text
    assert f"to go on: multipruner prune resume=true output_dir={folder.path}" in (
        " ".join(text.split()).replace("output_dir= ", "output_dir=")
    )
    assert show(folder.path, "--watch"), "nothing to wait for"


def test_a_driver_that_starts_is_never_refused(running: tuple[RunFolder, Heartbeat]) -> None:
    """However many look at the folder meanwhile: a lock that they tried would be in its way."""
    folder, _ = running
    folder.release()
    over, seen = threading.Event(), list[bool]()

    def look() -> None:
        while not over.is_set():
            seen.append(read_status(folder.path)["alive"])

    watchers = [threading.Thread(target=look) for _ in range(4)]
    for each in watchers:
        each.start()
    try:
        for _ in range(300):
            started = RunFolder(str(folder.path))
            time.sleep(0.001)
            started.release()
            time.sleep(0.001)
    finally:
        over.set()
        for each in watchers:
            each.join()
    assert {True, False} == set(seen), "they saw it come and go"


def test_without_a_list_of_locks_the_age_tells(
    running: tuple[RunFolder, Heartbeat], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = running
    monkeypatch.setattr(folder_module, "_LOCKS", tmp_path / "none")
    folder.release()
    assert read_status(folder.path)["alive"]
    file = folder.path / STATUS
    file.write_text(json.dumps(json.loads(file.read_text()) | {"updated": time.time() - 100}))
    assert not read_status(folder.path)["alive"]


def test_a_list_of_locks_that_cannot_be_read_says_nothing(
    running: tuple[RunFolder, Heartbeat], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, _ = running
    monkeypatch.setattr(folder_module, "_LOCKS", tmp_path)  # a folder
    assert folder_module.is_held(folder.path) is None
    assert read_status(folder.path)["alive"]


def test_of_a_driver_in_another_container_the_age_tells(
    running: tuple[RunFolder, Heartbeat], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the same host name, as containers in the host's network have it; its lock is not in the
    list, or is, when the container is below.
    """
    folder, _ = running
    file, locks = folder.path / STATUS, tmp_path / "locks"
    there = json.loads(file.read_text()) | {"pid_namespace": "pid:[1]"}
    long_ago = {"updated": time.time() - 100}
    file.write_text(json.dumps(there | long_ago))
    assert read_status(folder.path)["alive"], "silent, but it holds the folder"
    locks.write_text("")
    monkeypatch.setattr(folder_module, "_LOCKS", locks)
    assert not read_status(folder.path)["alive"]
    file.write_text(json.dumps(there))
    assert read_status(folder.path)["alive"]
    file.write_text(json.dumps(there | {"pid_namespace": folder_module.pid_namespace()}))
    assert not read_status(folder.path)["alive"], "its lock would be in the list"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError("no space"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (TargetNotReached("only 0.1"), "finished"),
        (None, "finished"),
    ],
)
def test_how_a_search_ends(tmp_path: Path, error: BaseException | None, state: str) -> None:
    heartbeat = Heartbeat(RunFolder(str(tmp_path / "run")), target_ratio=0.2)
    with heartbeat.running():
        assert read_status(tmp_path / "run")["state"] == "running"
    if error is not None:
        with pytest.raises(type(error)), heartbeat.running():
            raise error
    status = read_status(tmp_path / "run")
    assert (status["state"], status["alive"]) == (state, False)


def test_a_whole_run(ended: Outcome, show: Callable[..., str]) -> None:
    outcome = ended
    text = show(outcome.folder)
    assert "finished: target reached" in text
    last = json.loads((outcome.folder / "trajectory.jsonl").read_text().splitlines()[-1])
    assert (
        f"{last['step']} ({last['stage']}): ratio {last['ratio']:.2%} of 25.00%, perplexity "
        f"{last['perplexity']:.3f}"
    ) in text
    assert f"{outcome.summary['evaluations']['scored']:,} scored" in text


def test_a_sweep_shows_the_point_at_work(tmp_path: Path) -> None:
    sweep = RunFolder(str(tmp_path))
    points = [RunFolder(str(tmp_path / name)) for name in ("one", "two")]
    for point in points:
        with Heartbeat(point, target_ratio=0.1).running():
            pass
        point.release()
        status = read_status(tmp_path)
        assert (status["point"]["name"], status["state"], status["alive"]) == (
            point.path.name,
            "finished",
            True,
        ), "the sweep itself goes on"
    sweep.release()
    status = read_status(tmp_path)
    assert not status["alive"]
    assert status["point"] == {"name": "two", "number": 2}
    assert read_status(tmp_path / "one")["state"] == "finished"


def test_no_run_there(tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(InputError, match=r"output_dir: no status.json in"):
        read_status(tmp_path)
    outcome = cli("status", tmp_path, folder=None)
    assert outcome.status == 2
    assert (
        "give the output_dir of a search or a recovery that has started"
        in outcome.output.replace("\n", " ")
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--all"], "error: unrecognized arguments: --all; --help lists all\n"),
        ([], "error: the following arguments are required: output_dir; --help lists all\n"),
    ],
)
def test_words_that_it_does_not_know(
    words: list[str], says: str, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = cli("status", *words, folder=None)
    assert (outcome.status, outcome.output) == (2, says)
    assert capfd.readouterr() == ("", ""), "nor the usage"
