"""Jobs on a real Ray with a dashboard and a token, submitted from outside of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from safetensors.numpy import save_file

from tests.conftest import ROOT, tokens
from tests.pipelines.command import without_times
from tests.pipelines.conftest import Cli
from tests.ray_nodes import RayNodes, free_port, new_token
from tests.tiny_search import tiny_search

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

SAMPLES = 384
SOON_S = 300.0
"""On a machine that others use too."""


class Laptop:
    """A machine outside of the cluster: another folder, an environment of its own.

    Args:
        folder: of the test.
        token: of the cluster.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder / "laptop"
        self.folder.mkdir()
        (self.folder / "token").write_text(token)
        self.address = f"127.0.0.1:{free_port()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = kept | {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_API_SERVER_ADDRESS": self.address,
        }

    def run(self, *words: str, status: int = 0) -> str:
        """`multipruner WORDS`."""
        done = subprocess.run(
            [sys.executable, "-m", "pipelines", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SOON_S,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    with RayNodes(tmp_path / "ray", new_token()) as found:
        yield found


def start_head(nodes: RayNodes, laptop: Laptop) -> None:
    scripts = str(Path(sys.executable).parent)
    nodes.start_head(
        2,
        dashboard_port=int(laptop.address.rpartition(":")[2]),
        environment={
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_worker_niceness": "0",
        },
    )


def eventually(what: str, found: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not found():
        assert time.monotonic() < until, f"{what}: not within {SOON_S:.0f} s"
        time.sleep(0.2)


def num_steps(folder: Path) -> int:
    journal = folder / "trajectory.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0


def actor_names(nodes: RayNodes, laptop: Laptop) -> set[str]:
    token = Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    answer = requests.get(
        f"http://{laptop.address}/api/v0/actors",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    return {actor["name"] for actor in answer.json()["data"]["result"]["result"]}


def longer_search(folder: Path, checkpoint: Path) -> list[str]:
    """That of the tiny model, on so much text that it can be caught between two steps."""
    token_file = folder / "tokens.safetensors"
    save_file({"input_ids": tokens(SAMPLES, 32).numpy().astype(np.int64)}, token_file)
    return tiny_search(
        checkpoint,
        token_file,
        f"calibration.num_block_samples={SAMPLES}",
        f"calibration.num_width_samples={SAMPLES}",
        "calibration.batch_size=1",
    )


def test_a_search_goes_on_after_it_was_stopped_and_after_its_cluster_died(
    nodes: RayNodes,
    tmp_path: Path,
    checkpoint_folder: Path,
    cli: Cli,
    store_and_tracking: list[str],
) -> None:
    """By the same command each time; it comes to the trajectory of an undisturbed run."""
    search = longer_search(tmp_path, checkpoint_folder)
    laptop = Laptop(tmp_path, Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text())
    folder = tmp_path / "storage" / "my run"
    command = [
        *("submit", "--yes", "prune", *search, f"output_dir={folder}"),
        f"store.url=sqlite:///{tmp_path}/storage.db",
        f"tracking.uri=sqlite:///{tmp_path}/tracking.db",
        "cluster.num_gpus_per_evaluator=0",
    ]
    start_head(nodes, laptop)

    said = laptop.run(*command)
    assert "tiny-llama, 68,016 parameters, to ratio 0.25" in said
    assert "submitted as my-run-prune-1" in said
    refused = laptop.run(*command, status=2)
    assert "the job my-run-prune-1 is at work in" in refused
    eventually("a step", lambda: num_steps(folder) > 0)
    assert {"my run/evaluator-0", "my run/evaluator-1"} <= actor_names(nodes, laptop)
    laptop.run("stop", "my-run-prune-1")
    followed = laptop.run("logs", "my-run-prune-1", "--follow", status=1)
    assert "INFO step 1: cut" in followed
    assert "error: stopped by SIGTERM" in followed
    assert "error: my-run-prune-1: stopped: " in followed
    at_stop = num_steps(folder)

    assert "submitted as my-run-prune-2" in laptop.run(*command)
    eventually("one more step", lambda: num_steps(folder) > at_stop)
    nodes.nodes[0].kill()
    assert "nothing answers at" in laptop.run("jobs", status=2)
    at_kill = num_steps(folder)
    assert not (folder / "summary.json").exists()

    start_head(nodes, laptop)
    assert "no jobs of multipruner" in laptop.run("jobs")
    assert "submitted as my-run-prune-1" in laptop.run(*command)
    followed = laptop.run("logs", "my-run-prune-1", "--follow")
    assert "parameters removed (asked for 25.0%)" in followed
    assert f"INFO step {at_kill + 1}: cut" in followed
    assert "INFO step 1: cut" not in followed
    assert "succeeded" in laptop.run("jobs")

    undisturbed = cli("prune", *search, *store_and_tracking)
    assert undisturbed.status == 0, undisturbed.output
    assert without_times(folder / "trajectory.jsonl") == undisturbed.trajectory
    assert (folder / "shape.json").read_bytes() == (undisturbed.folder / "shape.json").read_bytes()
    token = Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if token.encode() in path.read_bytes()] == []
