"""The command line, run in this process, with everything it writes in a folder of the test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.launch import launch
from pipelines.config.overrides import CONF
from pipelines.prune.__main__ import prune


@dataclass
class Outcome:
    status: int
    output: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return data

    @property
    def trajectory(self) -> list[str]:
        """Lines of the journal without their times."""
        return without_times(self.folder / "trajectory.jsonl")

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


def without_times(path: Path) -> list[str]:
    lines = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        assert line.pop("seconds") >= 0
        assert line.pop("timestamp") > 1.7e9
        lines.append(json.dumps(line))
    return lines


@pytest.fixture
def arguments(tmp_path: Path, checkpoint_folder: Path, token_file: Path) -> list[str]:
    """A search of the tiny model in all three stages: about ten steps in a second."""
    return [
        f"model.path={checkpoint_folder}",
        "model.dtype=float32",
        "calibration=tokens",
        f"calibration.path={token_file}",
        "calibration.num_block_samples=8",
        "calibration.num_width_samples=6",
        "calibration.num_heldout_samples=4",
        "calibration.sequence_length=32",
        "calibration.batch_size=4",
        "search.target_ratio=0.25",
        "search.distribution=[40,40,20]",
        "search.mlp_group_channels=16",
        "search.head_group_channels=16",
        "cluster=inline",
        f"store.url=sqlite:///{tmp_path}/scores.db",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `conf/` that every command of this process reads instead."""
    folder = shutil.copytree(CONF, tmp_path / "conf")
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines.") and getattr(module, "CONF", None) == CONF:
            monkeypatch.setattr(module, "CONF", folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(
            f"cannot mount a small disk, which takes root on Linux: {mounted.stderr.strip()}"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """`cli("search.target_ratio=0.5", folder="a")` runs the command with these overrides on top."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, folder: str = "run", bare: bool = False) -> Outcome:
        given = [] if bare else arguments
        output_dir = (
            []
            if any(word.startswith("output_dir=") for word in overrides)
            else [f"output_dir={tmp_path / folder}"]
        )
        monkeypatch.setattr(sys, "argv", ["prune", *given, *output_dir, *overrides])
        capsys.readouterr()
        status: Any = 0
        try:
            launch("prune", prune)
        except SystemExit as stop:
            status = stop.code
        return Outcome(int(status or 0), capsys.readouterr().out, tmp_path / folder)

    return run
