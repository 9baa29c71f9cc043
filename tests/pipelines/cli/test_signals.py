"""Ctrl-C, docker stop, Kubernetes and Slurm: real signals, sent to real commands at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
SAYS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}
WAIT_S = 120

pytestmark = pytest.mark.slow


class Command:
    """A command in a process of its own, whose Ray keeps its files in `scratch`."""

    def __init__(self, scratch: Path, *words: str) -> None:
        self.scratch = scratch
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(scratch)},
            start_new_session=True,
            # A shell that runs the tests in its background has SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for(self, happened: Callable[[], object]) -> None:
        until = time.monotonic() + WAIT_S
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.002)

    def handles(self, number: int) -> bool:
        """Whether the process has set a handler of its own."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        [caught] = [line.split()[1] for line in text.splitlines() if line.startswith("SigCgt")]
        return bool(int(caught, 16) >> (number - 1) & 1)

    def maps(self, library: str) -> bool:
        """Whether the process has loaded a library."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit status and output, when nothing of it is left."""
        said, _ = self.process.communicate(timeout=WAIT_S)
        assert not list(self.scratch.glob("*/token")), said
        assert not _processes(self.scratch), said
        for words in ("Traceback", "***", "Stack trace", "Exception ignored", "failed:"):
            assert words not in said, said
        return self.process.returncode, said


def _processes(scratch: Path) -> list[psutil.Process]:
    """Those of the Ray in this folder, a moment after its driver."""
    until = time.monotonic() + 10
    while found := [
        each
        for each in psutil.process_iter(["cmdline"])
        if any(f"{scratch}/" in word for word in each.info["cmdline"] or ())
        and "raylet" in " ".join(each.info["cmdline"])
    ]:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, since Ray's sockets lie below."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


Start = Callable[..., Command]


@pytest.fixture
def start(scratch: Path, tmp_path: Path, arguments: list[str]) -> Iterator[Start]:
    """`start("cluster=local")` prunes the tiny model in a process."""
    started: list[Command] = []

    def run(*words: str) -> Command:
        given = [*arguments, f"output_dir={tmp_path}/run", *words]
        started.append(Command(scratch, "pipelines.prune", *given))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


LOCAL = ("cluster=local", "cluster.num_evaluators=1")


def go_on(folder: Path) -> str:
    return (
        "  Everything computed so far is kept. To go on: multipruner prune "
        f"resume=true output_dir={folder}"
    )


@BOTH
def test_in_the_search(
    start: Start, tmp_path: Path, number: int, search: Search, undisturbed: Outcome
) -> None:
    command, journal = start(*LOCAL), tmp_path / "run/trajectory.jsonl"
    command.wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 2)
    command.send(number)
    status, said = command.end()
    assert status == 128 + number
    assert said.splitlines()[-2:] == [f"error: {SAYS[number]}", go_on(tmp_path / "run")]
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "stopped"
    text = journal.read_text()
    assert text.endswith("\n")
    assert 2 <= len([json.loads(line) for line in text.splitlines()]) < len(undisturbed.trajectory)
    resumed = search("resume=true", "cluster=inline", bare=True)
    assert resumed.status == 0, resumed.output
    assert resumed.trajectory == undisturbed.trajectory


@BOTH
@pytest.mark.parametrize("library", ["", "libtorch"])
def test_in_the_imports(start: Start, tmp_path: Path, number: int, library: str) -> None:
    """At their beginning, and in the midst of the one that takes longest."""
    command = start(*LOCAL)
    command.wait_for(lambda: command.handles(signal.SIGTERM))
    assert not command.maps("libtorch"), "the handler comes after what takes time"
    command.wait_for(lambda: command.maps(library))
    command.send(number)
    status, said = command.end()
    assert status == 128 + number
    lines = [f"error: {SAYS[number]}"]
    if (tmp_path / "run").exists():  # on a machine so busy that the imports were over
        lines.append(go_on(tmp_path / "run"))
    assert said.splitlines()[-len(lines) :] == lines


@pytest.mark.parametrize(("number", "delay_s"), [(signal.SIGTERM, 0.5), (signal.SIGINT, 1.5)])
def test_while_ray_starts(
    start: Start, scratch: Path, tmp_path: Path, number: int, delay_s: float
) -> None:
    command = start(*LOCAL)
    command.wait_for(lambda: list(scratch.glob("multipruner-*")))
    time.sleep(delay_s)
    command.send(number)
    status, said = command.end()
    assert status == 128 + number
    assert said.splitlines()[-2:] == [f"error: {SAYS[number]}", go_on(tmp_path / "run")]


def test_again_and_again_to_all_processes_of_the_job(start: Start, tmp_path: Path) -> None:
    """As Slurm and the terminal do; who is impatient does not interrupt the putting in order."""
    command, journal = start(*LOCAL), tmp_path / "run/trajectory.jsonl"
    command.wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 2)
    for _ in range(4):  # not while Ray's C++ shuts down, which has no handler of ours
        os.killpg(command.process.pid, signal.SIGTERM)
        time.sleep(0.05)
    status, said = command.end()
    assert status == 143
    assert "stopping already" in said
    assert "error: stopped by SIGTERM" in said
    assert [json.loads(line) for line in journal.read_text().splitlines()]


def test_at_the_end(start: Start, tmp_path: Path) -> None:
    """Whatever it finds: the last step, the shutdown of Ray, MLflow, or Python's own end."""
    command, summary = start(*LOCAL), tmp_path / "run/summary.json"
    command.wait_for(summary.exists)
    while command.process.poll() is None:
        command.send(signal.SIGINT)
        time.sleep(0.02)
    status, said = command.end()
    assert status in (0, 128 + signal.SIGINT), said
    assert json.loads(summary.read_text())["ratio"] >= 0.25
