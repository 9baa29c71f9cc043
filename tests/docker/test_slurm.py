"""The job for Slurm, without Slurm: what it starts, and how it ends and queues itself again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.files import DOCKER


class FakeSlurm:
    """A folder with srun, scontrol, ray and python that only write down what they are asked."""

    def __init__(self, folder: Path, *, job: str) -> None:
        self.folder, self.job = folder, job
        self.output = folder / "run"
        self.passwords = folder / "passwords.env"
        self.passwords.write_text("MULTIPRUNER_STORE_URL='postgresql://u:hush-hush@h/d'\n")
        self.passwords.chmod(0o600)
        (folder / "bin").mkdir()
        # srun forgets its own options, runs the rest once, and takes everything with it when it is
        # ended.
        self._tool(
            "srun",
            (
                'while [[ $1 == --* ]]; do shift; done\nsetsid "$@" &\nstep=$!\ntrap "kill -- '
                '-$step; exit 143" TERM\nwait $step'
            ),
        )
        self._tool("scontrol", f'echo "$@" >>{folder}/scontrol')
        self._tool(
            "ray",
            f'echo "$@" >{folder}/ray\nstat -c %a "$RAY_AUTH_TOKEN_PATH" >{folder}/mode\nenv '
            f">{folder}/ray-environment\n"
            'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"',
        )
        self._tool(
            "python",
            f'[ "$1" != -c ] || exec {sys.executable} "$@"\necho "$@" >{folder}/python\nenv '
            f">{folder}/driver-environment\n"
            'case $FAKE in finishes) touch "$FAKE_OUTPUT/summary.json" ;; hangs) exec sleep 60 '
            ";; fails) exit 1 ;; esac",
        )

    def _tool(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def start(self, driver: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "FAKE": driver,
            "FAKE_OUTPUT": str(self.output),
            "MULTIPRUNER_VENV": str(self.folder),
            "MULTIPRUNER_ENV": str(self.passwords),
            "MULTIPRUNER_HEAD": "192.0.2.1",
            "SLURM_JOB_ID": self.job,
            "SLURM_ARRAY_TASK_ID": "16",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_ON_NODE": "64",
            "SLURM_GPUS_ON_NODE": "8",
        }
        command = ["bash", str(DOCKER / "slurm.sbatch"), *arguments]
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, driver: str, *arguments: str) -> tuple[int, str]:
        process = self.start(driver, *arguments)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def interrupt(self, number: signal.Signals) -> tuple[int, str]:
        process = self.start("hangs", f"output_dir={self.output}")
        until = time.monotonic() + 30
        while not (self.folder / "driver-environment").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[FakeSlurm]:
    fake = FakeSlurm(tmp_path, job=f"test{os.getpid()}")
    yield fake
    shutil.rmtree(f"/tmp/multipruner-{fake.job}", ignore_errors=True)


def test_slurm_runs_to_the_end(slurm: FakeSlurm) -> None:
    status, said = slurm.run(
        "finishes",
        f"output_dir={slurm.output}",
        "search.target_ratio=0.%a",
        "search.distribution=[1,0,0]",
    )
    assert status == 0, said
    assert slurm.read("python").split() == [
        *("-m", "pipelines.prune", "cluster=ray", "cluster.address=auto"),
        f"output_dir={slurm.output}",
        "search.target_ratio=0.16",
        "search.distribution=[1,0,0]",
    ]
    started = slurm.read("ray").split(" -- ")[0].split()
    assert started == [
        "symmetric-run",
        "--address",
        "192.0.2.1:6379",
        "--min-nodes",
        "2",
        "--num-cpus=64",
        "--num-gpus=8",
        "--disable-usage-stats",
    ]
    assert not Path(f"/tmp/multipruner-{slurm.job}").exists()
    assert slurm.read("scontrol") == ""


def test_slurm_keeps_secrets(slurm: FakeSlurm) -> None:
    _, said = slurm.run("finishes", f"output_dir={slurm.output}")
    assert slurm.read("mode") == "600\n"
    assert [path.name for path in slurm.output.iterdir()] == ["summary.json"], "the token is gone"
    assert "hush-hush" in slurm.read("driver-environment")
    assert "hush-hush" not in slurm.read("ray-environment") + said
    assert "RAY_AUTH_MODE=token" in slurm.read("ray-environment")
    slurm.passwords.chmod(0o644)
    status, said = slurm.run("finishes", f"output_dir={slurm.output}")
    assert status == 2
    assert "chmod 600" in said


def test_slurm_needs_an_output_folder(slurm: FakeSlurm) -> None:
    status, said = slurm.run("finishes", "search.target_ratio=0.2")
    assert status == 2
    assert "output_dir=FOLDER is missing" in said
    assert slurm.run("finishes")[0] == 2


@pytest.mark.parametrize("driver", ["fails", "never starts"])
def test_slurm_failure_is_a_failure(slurm: FakeSlurm, driver: str) -> None:
    status, _ = slurm.run(driver, f"output_dir={slurm.output}")
    assert status == 1
    assert slurm.read("scontrol") == ""


def test_slurm_queues_itself_again_when_time_is_up(slurm: FakeSlurm) -> None:
    status, said = slurm.interrupt(signal.SIGUSR1)
    assert slurm.read("scontrol") == f"requeue {slurm.job}\n", said
    assert status == 0
    assert not list(slurm.output.iterdir()), "the token is gone"


def test_slurm_cancelled_stays_cancelled(slurm: FakeSlurm) -> None:
    status, said = slurm.interrupt(signal.SIGTERM)
    assert slurm.read("scontrol") == ""
    assert status != 0, said
    assert not list(slurm.output.iterdir()), "the token is gone"
