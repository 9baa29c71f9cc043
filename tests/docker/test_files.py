"""Every file under docker/: it can be read, holds no secret, and begins with commands that work."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.config.overrides import override_problems
from pipelines.config.schemas import register
from tests.conftest import ROOT
from tests.docker.files import DOCKER, FILES, load

CLUSTER_PAGE = (ROOT / "docs" / "operate" / "cluster.md").read_text()
YAMLS = [path for path in FILES if path.suffix == ".yaml"]


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


@pytest.mark.parametrize("arguments", re.findall(r"`((?:[\w.]+=[^\s`]+ ?)+)`", CLUSTER_PAGE))
def test_options_on_the_page_of_clusters_are_understood(arguments: str) -> None:
    register()
    names = [word for word in arguments.split() if word[0].islower()]
    assert override_problems("prune", names) == []


def test_tracking_server_is_in_the_environment() -> None:
    text = (ROOT / "conf" / "tracking" / "server.yaml").read_text()
    assert yaml.safe_load(text)["uri"] == '${oc.env:MLFLOW_TRACKING_URI,""}'
