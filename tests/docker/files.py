"""What lies under docker/, read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

DOCKER = ROOT / "docker"
FILES = sorted(path for path in DOCKER.iterdir() if path.is_file() and path.name != ".env")
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY|CREDENTIAL|_URL$")


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


def _sequence(loader: yaml.SafeLoader, node: Any) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("!override", _sequence)


def load(name: str) -> Any:
    return yaml.load((DOCKER / name).read_text(), Loader=_Loader)


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


def variables(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text)
