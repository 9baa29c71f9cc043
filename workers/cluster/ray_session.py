"""The Ray that evaluators run on: one of our own on this machine, or a running cluster that is
joined.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants, services
from ray._private import worker as ray_worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._raylet import AuthenticationMode  # type: ignore[attr-defined]

from pruning.errors import InputError
from pruning.scoring.arithmetic import VARIABLES
from workers.cluster.authentication import GIVEN_BY, ray_environment
from workers.cluster.probe import Answer, ProbeFailed, ask, wait_for_listener
from workers.cluster.signals import deferred_signals

log = logging.getLogger(__name__)

_PACKAGES = Path(__file__).resolve().parents[2]
_SHIPPED = ("pruning", "workers")

_FOR_WORKERS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # an evaluator without GPU sees none
# What must hold in every process or scores differ, or a worker waits for a hub that cannot be
# reached. No paths, which are each node's own; no secrets.
_PASSED_ON = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    *VARIABLES,
)

_LONGEST_TEMP = 14  # Unix sockets lie below, and their paths end at 103 bytes


@contextmanager
def local_ray(num_cpus: int, num_gpus: int) -> Iterator[None]:
    """A Ray of our own on this machine for the time of the context.

    It listens on loopback only, wants a token that nobody else has whatever RAY_AUTH_MODE says,
    keeps its sockets and logs in a folder that only this user can enter (and that stays there after
    an error), has no dashboard and sends no usage reports. Inside a process that is connected to a
    Ray already, that one is used and left alone.
    """
    if ray.is_initialized():
        yield
        return
    base = Path(get_default_system_temp_dir())
    if len(str(base)) > _LONGEST_TEMP:
        base = Path("/tmp")  # noqa: S108 - only the folder that mkdtemp makes there is used
    folder = Path(tempfile.mkdtemp(prefix="multipruner-", dir=base))
    token, failed = folder / "token", False
    try:
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = _FOR_WORKERS | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_AUTH_TOKEN": None,
            ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        }
        with ray_environment(AuthenticationMode.TOKEN, environment), _shut_down():
            with _loopback(), deferred_signals():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=True,
                    _temp_dir=str(
                        folder / "ray"
                    ),  # one folder down, since Ray opens it to everybody
                )
            yield
    except Exception:
        failed = True
        log.info("what Ray logged is kept in %s", folder)
        raise
    finally:
        token.unlink(missing_ok=True)
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)  # what a straggler writes meanwhile may stay


@contextmanager
def joined_ray(
    address: str, *, allow_open: bool, timeout_s: float, extra_modules: Sequence[Path] = ()
) -> Iterator[None]:
    """A running cluster, joined for the time of the context.

    The code of `pruning` and `workers` travels there with the job.

    Args:
        address: HOST:PORT of the head, or `auto`: RAY_ADDRESS, else the one Ray that runs on this
            machine.
        allow_open: join even a cluster that asks nobody for a token.
        timeout_s: how long the head may take to answer.
        extra_modules: folders of further packages whose Python files travel too.

    A process that is connected to that cluster already stays connected.

    Raises:
        InputError: the cluster cannot be joined, or should not be.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address not in ("auto", connected):
            raise InputError(
                f"cluster.address: {address} was given, but this process is connected to the Ray "
                f"at {connected} already"
            )
        yield
        return
    place = _find(address)
    label = address if address == place else f"{address} ({place})"
    mode = _check(place, label, allow_open=allow_open, timeout_s=timeout_s)
    with ray_environment(mode, {}), _shut_down():
        with (
            tempfile.TemporaryDirectory(prefix="multipruner-code-") as scratch,
            deferred_signals(),
        ):
            ray.init(
                address=place,
                runtime_env=_runtime_env(Path(scratch), extra_modules),
                logging_level=logging.ERROR,
                log_to_driver=True,
            )
        yield


def ray_log_folder() -> Path:
    """Where Ray writes the logs of this session on this machine."""
    node: Any = ray_worker._global_node
    return Path(node.get_logs_dir_path())


@contextmanager
def _shut_down() -> Iterator[None]:
    """Disconnects at the end, and stops what was started here."""
    try:
        yield
    finally:
        with deferred_signals():
            ray.shutdown(wait_for_processes=True)


@contextmanager
def _loopback() -> Iterator[None]:
    """Has a Ray that is started meanwhile take 127.0.0.1 for this machine's address, as it does on
    macOS, and then listen nowhere else.

    Ray 2.60 offers no option for it: given as an argument, 127.0.0.1 is replaced by the address in
    the network.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _find(address: str) -> str:
    """HOST:PORT as Ray will use it."""
    given: str = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    if "://" in given:
        raise InputError(
            f"cluster.address: {given} is the address of a Ray Client server, through which "
            "evaluators cannot be driven. "
            "Run this command on a node of the cluster, with cluster.address=auto or HOST:PORT "
            "of the head (port 6379 unless chosen otherwise)"
        )
    if given == "auto":
        found = sorted(place for place in services.find_gcs_addresses() if place)
        if not found:
            raise InputError(
                "cluster.address: auto finds no Ray on this machine, and RAY_ADDRESS is not set. "
                "Run this command on a node of the cluster, or make this "
                "machine one: ray start --address=HOST:PORT --num-cpus=0. Without any cluster: "
                "cluster=local"
            )
        if len(found) > 1:
            raise InputError(
                "cluster.address: auto finds several Ray clusters on this machine: "
                f"{', '.join(found)}. Give one of them"
            )
        given = found[0]
    host, colon, port = given.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(
            f"cluster.address: {given!r} is neither auto nor HOST:PORT, such as 10.0.0.5:6379"
        )
    place = services.canonicalize_bootstrap_address(given)
    assert place is not None, "only `local` is none"
    return place


def _check(place: str, label: str, *, allow_open: bool, timeout_s: float) -> Any:
    """The authentication mode to join with.

    Raises:
        InputError: see `joined_ray`.
    """
    until = time.monotonic() + timeout_s
    try:
        wait_for_listener(place, timeout_s=timeout_s)
    except TimeoutError as error:
        raise InputError(
            f"cluster.address: nothing answers at {label} within {timeout_s:g} s: {error}. Give "
            "the address that `ray start --head` printed, "
            "see that the head runs and that this machine may reach its port, or do without a "
            "cluster: cluster=local"
        ) from error
    answer = _ask(place, label, with_token=False, until=until)
    mode = AuthenticationMode.DISABLED
    if answer.outcome == "answered":
        if not allow_open:
            raise InputError(
                f"cluster.address: the cluster at {label} asks for no token: whoever reaches its "
                "ports runs code as you. "
                "Start all its nodes with RAY_AUTH_MODE=token (the token: ray get-auth-token "
                "--generate), or accept it with cluster.allow_open=true"
            )
        log.warning(
            "the cluster at %s asks for no token: whoever reaches its ports runs code as you "
            "(cluster.allow_open=true)",
            label,
        )
    else:
        mode = AuthenticationMode.TOKEN
        answer = _ask(place, label, with_token=True, until=until)
    _require_compatible(answer, place, label)
    return mode


def _ask(place: str, label: str, *, with_token: bool, until: float) -> Answer:
    try:
        return ask(place, with_token=with_token, timeout_s=max(1.0, until - time.monotonic()))
    except (TimeoutError, ProbeFailed) as error:
        raise InputError(
            f"cluster.address: something listens at {label} but does not answer as the head of a "
            f"Ray {ray.__version__} cluster does: {error}. "
            "Give the address that `ray start --head` printed, and the same Ray here as there"
        ) from error


def _require_compatible(answer: Answer, place: str, label: str) -> None:
    if answer.outcome == "no_token":
        why = f" ({answer.detail})" if answer.detail else ""
        raise InputError(
            f"cluster.address: the cluster at {label} wants a token, and there is none "
            f"here{why}. Give it by {GIVEN_BY}"
        )
    if answer.outcome == "denied":
        raise InputError(
            f"cluster.address: the cluster at {label} does not accept our token. Give the "
            f"cluster's own by {GIVEN_BY}"
        )
    python = ".".join(map(str, sys.version_info[:3]))
    parts = (
        2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    )  # as Ray itself compares
    if (
        ray.__version__ != answer.ray_version
        or python.split(".")[:parts] != answer.python_version.split(".")[:parts]
    ):
        raise InputError(
            f"cluster.address: the cluster at {label} runs Ray {answer.ray_version} on Python "
            f"{answer.python_version}, this is Ray {ray.__version__} on Python "
            f"{python}. Both must be the same: run the same environment or image here and on "
            "every node"
        )
    if not answer.local_nodes:
        raise InputError(
            f"cluster.address: no node of the cluster at {label} runs on this machine, and the "
            "driver needs one. "
            "Run this command on a node, or make this machine one that evaluates nothing: ray "
            f"start --address={place} --num-cpus=0 --num-gpus=0"
        )


def _runtime_env(scratch: Path, extra_modules: Sequence[Path]) -> dict[str, Any]:
    """What the job brings to the nodes: Python files alone, copied to `scratch` first, so that
    nothing that lies beside them can travel.

    Raises:
        InputError: the job was submitted with modules of its own, which Ray cannot add ours to.
    """
    submitted = (
        json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}").get("runtime_env") or {}
    )
    if "py_modules" in submitted:
        raise InputError(
            "cluster.address: this job was submitted with py_modules in its runtime_env; leave "
            "them out, the code travels by itself"
        )
    modules = []
    for folder in (*(_PACKAGES / name for name in _SHIPPED), *extra_modules):
        shutil.copytree(folder, scratch / folder.name, ignore=_all_but_python)
        modules.append(str(scratch / folder.name))
    passed_on = _FOR_WORKERS | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ours = {
        name: value
        for name, value in passed_on.items()
        if name not in submitted.get("env_vars", {})
    }  # Ray refuses to be told twice
    runtime_env: dict[str, Any] = {"py_modules": modules, "env_vars": ours}
    if "working_dir" not in submitted:
        # An empty one. Without any, Ray puts this process's current folder before our modules
        # wherever a folder of that name exists.
        (scratch / "empty").mkdir()
        runtime_env["working_dir"] = str(scratch / "empty")
    return runtime_env


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == "__pycache__" or not (name.endswith(".py") or Path(folder, name).is_dir())
    ]
