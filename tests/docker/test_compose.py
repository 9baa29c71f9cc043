"""The stack for one machine: secrets, networks, rights, the order of its services."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.docker.files import DOCKER, SECRET_NAME, load, variables


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_every_variable_is_required_or_has_a_default(name: str) -> None:
    text = "\n".join(
        line
        for line in (DOCKER / name).read_text().splitlines()
        if not line.lstrip().startswith("#")
    )
    assert [name for name, rest in variables(text) if not rest.startswith((":-", ":?"))] == []
    assert [
        rest for _, rest in variables(text) if rest.startswith(":?") and len(rest) < 10
    ] == [], "a required variable says what to do"
    assert re.findall(r"(?<!\$)\$(?!\$|\{)\w+", text.replace("$$", "\0")) == []


def test_secrets_come_from_required_variables(compose: Any, services: dict[str, Any]) -> None:
    required = {
        name
        for name, rest in variables((DOCKER / "compose.yaml").read_text())
        if rest.startswith(":?")
    }
    assert {secret["environment"] for secret in compose["secrets"].values()} == required
    for service in services.values():
        for secret in service.get("secrets", []):
            assert (secret if isinstance(secret, str) else secret["source"]) in compose["secrets"]
    assert not any(
        "required" in map(str, service.get("configs", [])) for service in services.values()
    ), "it holds every secret: no container may get it"


def test_the_example_environment_names_what_is_required_and_holds_nothing() -> None:
    lines = [
        line
        for line in (DOCKER / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"\w+=", line) for line in lines)
    required = {
        name
        for name, rest in variables((DOCKER / "compose.yaml").read_text())
        if rest.startswith(":?")
    }
    assert {line.rstrip("=") for line in lines} == required
    optional = {
        name
        for name, rest in variables((DOCKER / "compose.yaml").read_text())
        if rest.startswith(":-")
    }
    assert (
        set(re.findall(r"^#(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
        <= optional
    )


@pytest.fixture
def stack_env(tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    """`make stack-env`, in a copy of what it needs."""
    (tmp_path / "docker").mkdir()
    for name in ("Makefile", "docker/.env.example", "docker/make_env.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "--silent", "stack-env", f"PYTHON={sys.executable}"]
    return lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, umask=0)


def test_make_stack_env_fills_every_password(
    stack_env: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    made = stack_env()
    assert made.returncode == 0, made.stderr
    filled, example = tmp_path / "docker" / ".env", (DOCKER / ".env.example").read_text()
    values = re.findall(r"^\w+=(\w+)$", filled.read_text(), re.MULTILINE)
    assert len(values) == len(set(values)) == 6
    assert all(len(value) == 64 for value in values)
    assert re.sub(r"^(\w+=)\w+$", r"\1", filled.read_text(), flags=re.MULTILINE) == example
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    assert not any(value in made.stdout + made.stderr for value in values)


def test_make_stack_env_keeps_the_passwords_that_are_there(
    stack_env: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "docker" / ".env").write_text("POSTGRES_PASSWORD=theirs\n")
    made = stack_env()
    assert made.returncode != 0
    assert "docker/.env is there already" in made.stderr
    assert (tmp_path / "docker" / ".env").read_text() == "POSTGRES_PASSWORD=theirs\n"


def test_passwords_reach_services_as_files(services: dict[str, Any]) -> None:
    helped = re.search(r"for name in ([A-Z_\s\\]+); do", (DOCKER / "with-secrets.sh").read_text())
    assert helped is not None
    for name, service in services.items():
        own = {
            secret if isinstance(secret, str) else secret["source"]
            for secret in service.get("secrets", [])
        }
        for variable, value in service.get("environment", {}).items():
            if not SECRET_NAME.search(variable):
                continue
            if variable.endswith("_URL"):
                assert not re.search(r"://[^/@]*:[^/@]*@", value), variable
                continue
            assert variable.endswith(("_FILE", "_PATH")), f"{name}: {variable}"
            assert value.removeprefix("/run/secrets/") in own, f"{name}: {variable}"
            if name != "postgres" and variable != "RAY_AUTH_TOKEN_PATH":
                assert variable.removesuffix("_FILE") in helped[1].split()


def test_ports_are_published_on_this_machine_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service for service in services.values())


def test_rays_dashboard_is_opened_on_this_machine(services: dict[str, Any]) -> None:
    """It has to listen on the container's own address for that."""
    head = services["ray-head"]
    assert {"--include-dashboard=true", "--dashboard-host=0.0.0.0"} <= set(head["command"])
    assert head["ports"] == ["127.0.0.1:${DASHBOARD_PORT:-8265}:8265"]
    assert head["environment"]["RAY_AUTH_MODE"] == "token"


def test_workers_reach_neither_database_nor_mlflow(compose: Any, services: dict[str, Any]) -> None:
    assert services["ray-worker"]["networks"] == services["ray-head"]["networks"] == ["cluster"]
    assert compose["networks"]["database"] == {"internal": True}
    assert set(services["postgres"]["networks"]) == {"database"}


def test_services_have_no_privileges(services: dict[str, Any]) -> None:
    for service in services.values():
        assert not service.get("privileged")
        assert "cap_add" not in service
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["init"] is True
    assert services["postgres"]["user"] == "postgres"  # root without capabilities cannot start it


def test_mlflow_has_an_image_of_its_own(services: dict[str, Any]) -> None:
    targets = {name: service.get("build", {}).get("target") for name, service in services.items()}
    assert targets.pop("mlflow") == "mlflow"
    assert set(targets.values()) == {None}
    assert "AS mlflow" in (DOCKER / "Dockerfile").read_text()
    images = {service["image"] for service in services.values()}
    assert len(images) == 3, "PostgreSQL's, MLflow's, ours"


def test_ray_asks_for_a_token_everywhere(services: dict[str, Any]) -> None:
    for name in ("ray-head", "ray-worker", "driver"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert any(
            isinstance(secret, Mapping)
            and secret["source"] == "ray_token"
            and secret["mode"] == 0o400
            for secret in services[name]["secrets"]
        )


def test_services_start_in_order_and_again(compose: Any, services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] == ("on-failure:20" if name == "driver" else "unless-stopped")
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[other], f"{name} waits for {other}"
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).exists()
    assert services["driver"]["profiles"] == ["prune"]


def test_models_are_read_only_and_weights_lie_at_the_same_path(services: dict[str, Any]) -> None:
    for name in ("ray-worker", "driver"):
        mounts = dict(
            volume.rsplit(":", 2)[-2:]
            if volume.endswith(":ro")
            else (volume.rsplit(":", 1)[-1], "rw")
            for volume in services[name]["volumes"]
        )
        assert mounts["/models"] == "ro"
        assert "/data/cache" in mounts


def test_the_gpu_file_changes_services_that_exist(services: dict[str, Any]) -> None:
    extra = load("compose.gpu.yaml")["services"]
    assert set(extra) <= set(services)
    [device] = extra["ray-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    base = [
        word
        for word in services["ray-worker"]["command"]
        if not word.startswith(("--num-cpus", "--num-gpus"))
    ]
    assert extra["ray-worker"]["command"] == base, "Ray counts CPUs and GPUs itself"
