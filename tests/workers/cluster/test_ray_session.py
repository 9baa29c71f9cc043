"""Joining real clusters of Ray processes on this machine.

A process joins one Ray in its life, so every driver is a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruning.errors import InputError
from tests.ray_nodes import RayNodes, free_port, new_token
from workers.cluster import ray_session as cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]

PROGRAMS = Path(__file__).parent / "programs"
JOIN, OWN_RAY, PRETEND_VERSIONS = (
    f"tests.workers.cluster.programs.{name}" for name in ("join", "own_ray", "pretend_versions")
)


def drive(
    program: str | Path, *arguments: str, environment: dict[str, str], cwd: Path = ROOT
) -> Any:
    """What a driver, a module or a file, printed last, as JSON."""
    script = ["-m", program] if isinstance(program, str) else [str(program)]
    done = subprocess.run(
        [sys.executable, *script, *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CHECK" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head with a token, a node without GPU that lacks the project, and a node with two (logical)
    GPUs that has it.
    """
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(PROGRAMS / "not_installed.py", folder / "sitecustomize.py")
    with RayNodes(folder, new_token()) as running:
        running.start_head()
        running.add_node(environment={"PYTHONPATH": str(folder)})
        running.add_node(num_gpus=2)
        yield running
    assert [pid for node in running.nodes for pid in node.pids()] == []


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head that asks for no token."""
    with RayNodes(tmp_path_factory.mktemp("open"), token=None) as running:
        running.start_head()
        yield running


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_ray_of_our_own_is_for_this_user_on_this_machine(mode: str | None) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | ({"RAY_AUTH_MODE": mode} if mode else {})
    facts = drive(OWN_RAY, environment=environment)
    [[*_, memory_bytes, _, labels]] = facts["nodes"]
    assert memory_bytes > 0
    assert "ray.io/node-id" in labels
    assert facts == {
        "listening": ["127.0.0.1", "::ffff:127.0.0.1"],
        "outcomes": ["denied", "answered"],
        "mode": "0o700",
        "logs": True,
        "text": "2 GPU and 1 CPU on 1 node",
        "nodes": [["127.0.0.1", 1, 2, memory_bytes, True, labels]],
        "left": [False, [], 0],
    }


def test_a_cluster_with_a_token(guarded: RayNodes, tmp_path: Path) -> None:
    """Joined with the right one, whatever the mode; without one and with a wrong one there are
    clear words, and no process dies of it.
    """
    without = {
        name: value
        for name, value in guarded.environment.items()
        if not name.startswith("RAY_AUTH")
    } | {"HOME": str(tmp_path)}
    right = {"RAY_AUTH_TOKEN_PATH": guarded.environment["RAY_AUTH_TOKEN_PATH"]}

    def join(**changes: str) -> Any:
        return drive(JOIN, guarded.address, "closed", "20", environment=without | changes)

    assert join(**right) == "joined"
    assert join(**right, RAY_AUTH_MODE="disabled") == "joined"
    for message in (
        join(),
        join(RAY_AUTH_MODE="token"),
        join(RAY_AUTH_TOKEN_PATH=str(tmp_path / "none")),
    ):
        assert message.startswith(
            f"cluster.address: the cluster at {guarded.address} wants a token, and there is none "
            "here"
        )
        assert (
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            in message
        )
    wrong = new_token()
    message = join(RAY_AUTH_TOKEN=wrong)
    assert message.startswith(
        f"cluster.address: the cluster at {guarded.address} does not accept our token"
    )
    assert wrong not in message


def test_a_cluster_without_a_token_is_joined_only_on_request(unguarded: RayNodes) -> None:
    message = drive(JOIN, unguarded.address, "closed", "20", environment=unguarded.environment)
    assert message.startswith(
        f"cluster.address: the cluster at {unguarded.address} asks for no token: whoever reaches "
        "its ports runs code as you"
    )
    assert "cluster.allow_open=true" in message
    with_token = unguarded.environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": new_token(),
    }  # which does not make the cluster any safer
    assert "cluster.allow_open=true" in drive(
        JOIN, unguarded.address, "closed", "20", environment=with_token
    )
    assert drive(JOIN, unguarded.address, "open", "20", environment=with_token) == "joined"


def test_nothing_is_there(unguarded: RayNodes) -> None:
    address = f"127.0.0.1:{free_port()}"
    message = drive(JOIN, address, "closed", "1", environment=unguarded.environment)
    assert message.startswith("cluster.address: nothing answers at ")
    assert "within 1 s" in message


def test_something_else_is_there(unguarded: RayNodes) -> None:
    with socket.create_server(("127.0.0.4", 0)) as server:
        message = drive(
            JOIN,
            f"127.0.0.4:{server.getsockname()[1]}",
            "closed",
            "2",
            environment=unguarded.environment,
        )
    assert message.startswith("cluster.address: something listens at 127.0.0.4:")


def test_no_node_here_and_another_version(tmp_path: Path) -> None:
    with RayNodes(tmp_path, token=None) as other:
        head = other.start_head()
        [raylet] = [pid for pid in head.pids() if psutil.Process(pid).name() == "raylet"]
        os.kill(raylet, signal.SIGKILL)
        message = drive(JOIN, other.address, "open", "20", environment=other.environment)
        assert message.startswith(
            f"cluster.address: no node of the cluster at {other.address} runs on this machine"
        )
        assert f"ray start --address={other.address} --num-cpus=0" in message
        drive(
            PRETEND_VERSIONS,
            other.address,
            json.dumps({"ray_version": "2.40.0", "python_version": "3.10.2"}),
            environment=other.environment,
        )
        message = drive(JOIN, other.address, "open", "20", environment=other.environment)
        assert message.startswith(
            f"cluster.address: the cluster at {other.address} runs Ray 2.40.0 on Python 3.10.2, "
            "this is Ray 2."
        )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "ray://10.0.0.5:10001",
            (
                "ray://10.0.0.5:10001 is the address of a Ray Client server.*Run this command on a "
                "node of the cluster"
            ),
        ),
        ("10.0.0.5", "'10.0.0.5' is neither auto nor HOST:PORT"),
        ("head:x", "'head:x' is neither auto nor HOST:PORT"),
        ("nowhere.invalid:6379", "nothing answers at .*nowhere.invalid:6379"),
    ],
)
def test_addresses_that_are_none(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given in (address, "auto"):
        with (
            pytest.raises(InputError, match=f"^cluster.address: .*{words}"),
            cluster.joined_ray(given, allow_open=False, timeout_s=1),
        ):
            pass


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A driver's checkout, with a module of its own and files that must not travel."""
    folder = tmp_path / "checkout"
    for name in ("pruning", "workers"):
        shutil.copytree(ROOT / name, folder / name)
        (folder / name / "model.safetensors").write_bytes(os.urandom(3_000_000))
    extra = folder / "elsewhere" / "extra_module"
    for outputs in (folder / "outputs", extra / "outputs"):
        outputs.mkdir(parents=True)
        (outputs / "scores.db").write_bytes(os.urandom(3_000_000))
    (folder / "pruning" / "marker.py").touch()
    (extra / "__init__.py").touch()
    shutil.copy(PROGRAMS / "ship.py", folder)
    return folder


def test_the_code_travels_and_nothing_else(guarded: RayNodes, checkout: Path) -> None:
    """The driver's copy is what runs, on a node that has the project installed and on one that has
    not, and although the driver's own folder exists there.
    """
    changes = {
        "RAY_ADDRESS": guarded.address,
        "PYTHONPATH": str(checkout),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": "/home/driver",
    }
    facts = drive(checkout / "ship.py", environment=guarded.environment | changes, cwd=checkout)

    assert [(*node[1:4], node[5]) for node in facts["nodes"]] == [
        ("127.0.0.2", 0, 0, True),
        ("127.0.0.3", 1, 0, True),
        ("127.0.0.4", 1, 2, True),
    ]
    assert facts["text"] == "2 GPU and 2 CPU on 3 nodes"
    assert facts["other"] == (
        "cluster.address: 127.0.0.1:1 was given, but this process is connected to the Ray at "
        f"{guarded.address} already"
    )
    _, bare, equipped = (node[0] for node in facts["nodes"])
    witnesses = facts["witnesses"]
    assert {witness["node"]: witness["installed"] for witness in witnesses[:2]} == {
        bare: False,
        equipped: True,
    }
    assert [witness["gpus"] for witness in witnesses[:2]] == ["", ""]
    assert sorted((witness["gpus"], witness["node"]) for witness in witnesses[2:]) == [
        ("0", equipped),
        ("1", equipped),
    ]
    for witness in witnesses:
        assert witness["environment"] == {"HF_HUB_OFFLINE": "1", "HF_TOKEN": None, "HF_HOME": None}
        assert witness["cwd"] == []
        for file in witness["files"]:
            check_shipped(Path(file))


def check_shipped(file: Path) -> None:
    """It lies in a package of small Python files that Ray brought."""
    package = next(parent for parent in file.parents if parent.parent.name == "py_modules_files")
    assert "runtime_resources" in package.parts
    sources = [
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.suffix for path in sources} == {".py"}
    assert sum(path.stat().st_size for path in sources) < 1_000_000


def test_a_submitted_job_keeps_what_it_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `ray job submit` and KubeRay's RayJob: Ray refuses what both the job and its driver
    set.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    submitted = {"working_dir": "gcs://package.zip", "env_vars": {"HF_HUB_OFFLINE": "0"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": submitted}))
    brought = cluster._runtime_env(tmp_path, ())
    assert brought["env_vars"] == {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    assert "working_dir" not in brought
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        json.dumps({"runtime_env": {"py_modules": ["gcs://package.zip"]}}),
    )
    with pytest.raises(
        InputError, match="^cluster.address: this job was submitted with py_modules"
    ):
        cluster._runtime_env(tmp_path, ())
