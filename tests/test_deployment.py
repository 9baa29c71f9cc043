"""What is under docker/, as far as it can be checked without Docker, Kubernetes or Slurm:
structure, secrets, command lines, the logic of the scripts.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.overrides import override_problems
from pipelines.config.schemas import register

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
FILES = sorted(path for path in DOCKER.iterdir() if path.is_file() and path.name != ".env")
YAMLS = [path for path in FILES if path.suffix == ".yaml"]
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY|CREDENTIAL|_URL$")


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


def _sequence(loader: yaml.SafeLoader, node: Any) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("!override", _sequence)


def load(name: str) -> Any:
    return yaml.load((DOCKER / name).read_text(), Loader=_Loader)


@pytest.fixture(scope="module")
def compose() -> Any:
    return load("compose.yaml")


@pytest.fixture(scope="module")
def services(compose: Any) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def rayjob() -> Any:
    return load("rayjob.yaml")


def pods(rayjob: Any) -> dict[str, Any]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    found = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return found | {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "submitter": rayjob["spec"]["submitterPodTemplate"]["spec"],
    }


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {
        name.lower().replace("_", "-"): version
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }


# --- every file


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_yaml_loads(path: Path) -> None:
    assert load(path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_password_stands_in_a_file(path: Path) -> None:
    text = path.read_text()
    for user, password in re.findall(r"://([^/\s:@]+):([^@\s/]+)@", text):
        assert (user, password) == ("USER", "PASSWORD"), f"{user}:..."
    assert not re.findall(
        r"\b[0-9a-fA-F]{32,}\b|\b[A-Za-z0-9+/]{40,}={0,2}\b", text.replace("https://", "")
    )
    assert not re.findall(
        r"(?i)\b(?:password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9]{4,}['\"]?\s*$",
        text,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    "name", ["Dockerfile", "compose.yaml", "compose.gpu.yaml", "rayjob.yaml", "slurm.sbatch"]
)
def test_a_file_begins_with_the_commands_for_it(name: str) -> None:
    head = [line for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#!")]
    comment = "\n".join(
        head[: next(number for number, line in enumerate(head) if not line.startswith("#"))]
    )
    for word in (
        ("docker build", "docker run") if name == "Dockerfile" else ("start ", "watch ", "stop ")
    ):
        assert word in comment


def test_files_named_in_commands_exist() -> None:
    text = "\n".join(path.read_text() for path in [*FILES, ROOT / "SECURITY.md"])
    named = re.findall(r"(?:-f|--file|sbatch|apply -f|<) (docker/[\w./-]+)", text) + re.findall(
        r"`(docker/[\w.-]+)`", text
    )
    assert named
    assert [name for name in named if name != "docker/.env" and not (ROOT / name).exists()] == []


# --- command lines


def command_lines() -> Iterator[tuple[str, str]]:
    """Every `python -m pipelines.*` under docker/, on one line each."""
    for path in FILES:
        text = re.sub(r"^\s*#", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        if path.name == "rayjob.yaml":
            text += "\n" + load(path.name)["spec"]["entrypoint"]
            text = re.sub(r"entrypoint: >-.*?(?=submitterPodTemplate)", "", text, flags=re.DOTALL)
        for match in re.finditer(r"python(?: |\", \")-m(?: |\", \")(pipelines\.\w+)([^\n]*)", text):
            rest = re.split(r"\s\(|&$|\)$|`", match[2])[0].replace('", "', " ").rstrip('"]')
            yield path.name, f"{match[1]} {rest}"
    sbatch = re.sub(r"^\s*#", "", (DOCKER / "slurm.sbatch").read_text(), flags=re.MULTILINE)
    sbatch = sbatch.replace("\\\n", " ")
    for match in re.finditer(r"sbatch (?:--\S+ )*docker/slurm.sbatch ([^\n]*)", sbatch):
        yield "slurm.sbatch", f"pipelines.prune {match[1]}"


def expand(words: str) -> list[str]:
    """A command line with the variables of the manifests filled in as by default."""
    values = {"GPUS_PER_EVALUATOR": "0", "RUN": "demo", "PRUNE_ARGS": "experiment=demo", "a": "16"}
    words = re.sub(
        r"\$+(\w+)", lambda match: values[match[1]], re.sub(r'"\$\{arguments\[@\]\}"', "", words)
    ).replace("%a", "16")
    return [word for word in shlex.split(words) if word != "..."]


def test_there_are_command_lines() -> None:
    places = {place for place, _ in command_lines()}
    assert places >= {"Dockerfile", "compose.yaml", "rayjob.yaml", "slurm.sbatch"}


@pytest.mark.parametrize(("place", "words"), list(command_lines()), ids=lambda part: part[:60])
def test_command_lines_are_understood(place: str, words: str) -> None:
    module, *arguments = expand(words)
    assert importlib.util.find_spec(module) is not None
    if module == "pipelines.prune":
        register()
        assert override_problems("prune", arguments) == []


CLUSTER_PAGE = (ROOT / "docs/operate/cluster.md").read_text()


@pytest.mark.parametrize("arguments", re.findall(r"`((?:[\w.]+=[^\s`]+ ?)+)`", CLUSTER_PAGE))
def test_options_on_the_page_of_clusters_are_understood(arguments: str) -> None:
    register()
    names = [word for word in arguments.split() if word[0].islower()]
    assert override_problems("prune", names) == []


def test_tracking_server_is_in_the_environment() -> None:
    text = (ROOT / "conf" / "tracking" / "server.yaml").read_text()
    assert yaml.safe_load(text)["uri"] == '${oc.env:MLFLOW_TRACKING_URI,""}'


# --- Compose


def variables(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text)


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


def test_workers_reach_neither_database_nor_mlflow(compose: Any, services: dict[str, Any]) -> None:
    assert services["ray-worker"]["networks"] == services["ray-head"]["networks"] == ["cluster"]
    assert compose["networks"]["database"] == {"internal": True}
    assert set(services["postgres"]["networks"]) == {"database"}


def test_our_services_have_no_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not service.get("privileged")
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"]
            assert "no-new-privileges:true" in service["security_opt"]


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


# --- the image


def test_the_image_is_pinned_and_not_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    lines = [
        line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
    ]
    base = next(line for line in lines if line.startswith("ARG BASE="))
    assert re.search(r":\d+\.\d+-\w+", base)
    users = [line for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[-1])
    for command in re.findall(r"pip install ([^&]*)", "\n".join(lines)):
        assert "--constraint constraints.txt" in command or re.search(
            r"--no-deps \S+==", command
        ), command
    assert not re.search(r"^(ENV|ARG)\b.*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)


def test_what_the_image_adds_is_pinned_once() -> None:
    ours, projects = pins(DOCKER / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert not set(ours) & set(projects)
    lines = [
        line.split("#")[0].strip()
        for line in (DOCKER / "requirements.txt").read_text().splitlines()
    ]
    loose = [line for line in lines if line and "==" not in line]
    assert [re.sub(r"\[.*", "", line) for line in loose] == ["mlflow", "ray"]
    assert {"mlflow", "ray", "psycopg"} <= set(projects)


def test_the_build_sees_what_it_copies_and_no_more() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = [
        word
        for line in (DOCKER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
        if "--" not in word
    ]
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


def test_versions_in_manifests_are_those_that_are_pinned(rayjob: Any) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pins(ROOT / "constraints.txt")["ray"]


# --- KubeRay


def test_rayjob_outlives_its_cluster(rayjob: Any) -> None:
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    options = dict(word.split("=", 1) for word in spec["entrypoint"].split() if "=" in word)
    mounts = {
        mount["name"]: mount["mountPath"]
        for mount in pods(rayjob)["head"]["containers"][0]["volumeMounts"]
    }
    assert options["output_dir"].startswith(mounts["outputs"] + "/"), "state outlives the cluster"
    assert options["model.path"].startswith(mounts["models"] + "/")
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (
        group["minReplicas"]
        <= group["replicas"]
        <= group["maxReplicas"]
        == int(options["cluster.num_evaluators"])
    )
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == int(
        options["cluster.num_gpus_per_evaluator"]
    )
    assert worker["volumeMounts"] == pods(rayjob)["head"]["containers"][0]["volumeMounts"]
    assert (
        len(
            {container["image"] for pod in pods(rayjob).values() for container in pod["containers"]}
        )
        == 1
    )


def test_rayjob_secrets_are_references_on_the_head_alone(rayjob: Any) -> None:
    for name, pod in pods(rayjob).items():
        for variable in pod["containers"][0].get("env", []):
            if SECRET_NAME.search(variable["name"]) or variable["name"].startswith("MLFLOW"):
                assert name == "head"
                assert variable["valueFrom"]["secretKeyRef"] == {
                    "name": "multipruner",
                    "key": variable["name"],
                }


@pytest.mark.parametrize("name", ["head", "gpu", "submitter"])
def test_rayjob_pods_are_restricted(rayjob: Any, name: str) -> None:
    pod = pods(rayjob)[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]
    assert (
        rayjob["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"][
            "allowPrivilegeEscalation"
        ]
        is False
    )


# --- scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path: Path) -> None:
    subprocess.run(
        [
            path.read_text().splitlines()[0].removeprefix("#!").split("/")[-1].removeprefix("env "),
            "-n",
            str(path),
        ],
        check=True,
    )
    assert os.access(path, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", *map(str, SCRIPTS)], check=True)


def with_secrets(environment: Mapping[str, str], command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(DOCKER / "with-secrets.sh"), "sh", "-c", command],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def test_with_secrets_reads_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a b$c'd\n")
    answer = with_secrets(
        {"PGPASSWORD_FILE": str(tmp_path / "password")},
        'printf %s "$PGPASSWORD|${PGPASSWORD_FILE-gone}"; exit 7',
    )
    assert answer.stdout == "a b$c'd|gone"
    assert answer.returncode == 7
    assert with_secrets({"PGPASSWORD": "given"}, "echo $PGPASSWORD").stdout == "given\n"


def test_with_secrets_stops_without_a_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    answer = with_secrets({"PGPASSWORD_FILE": str(tmp_path / "empty")}, "echo started")
    assert answer.returncode == 2
    assert "is empty (PGPASSWORD_FILE)" in answer.stderr
    assert (
        with_secrets({"PGPASSWORD_FILE": str(tmp_path / "nowhere")}, "echo started").returncode != 0
    )
    assert answer.stdout == ""


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
