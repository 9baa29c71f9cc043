"""What `pip install` puts into an environment; the dependencies are those of this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.source_tree import tracked

INSTALLED = ("conf", "multipruner", "pipelines", "pruning", "workers")


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")


def build_wheel(folder: Path) -> Path:
    """Built from a copy of the tracked files, so that nothing is left in the checkout."""
    for path in tracked(ROOT):
        if path.parts[0] in {"README.md", "LICENSE", "pyproject.toml", *INSTALLED}:
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / "source" / path)
    pip("wheel", folder / "source", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    [found] = folder.glob("*.whl")
    return found


def install(wheel: Path, site: Path) -> dict[str, str]:
    """Installs it; the variables of processes that are to use what is installed."""
    pip("install", "--no-deps", "--target", site, wheel)
    return {"PYTHONPATH": str(site)}
