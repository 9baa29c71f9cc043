"""Commands, run in this process, with everything they write in a folder of the test."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from pipelines.cli import launch
from pipelines.config import grid, overrides
from pruning.models.checkpoint import Checkpoint
from tests.pipelines.command import Outcome, run_command, searched
from tests.tiny_search import effective, places, tiny_search


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs. Making its tables takes a second, which is most of what a
    search of the tiny model takes.
    """
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_and_tracking(tmp_path: Path, empty_mlflow: Path) -> list[str]:
    """Both in the folder of the test, and evaluators in the process of the command."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return places(tmp_path)


@pytest.fixture
def arguments(
    checkpoint_folder: Path, token_file: Path, store_and_tracking: list[str]
) -> list[str]:
    """A search of the tiny model in all three stages: about ten steps in a second."""
    return [*tiny_search(checkpoint_folder, token_file), *store_and_tracking]


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `conf/` that every command of this process reads instead."""
    folder = shutil.copytree(overrides.CONF, tmp_path / "conf")
    for module in (overrides, grid, launch):
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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the checkpoints whose weights were hashed, once for each time."""
    found: list[Path] = []
    fingerprint = Checkpoint.fingerprint

    def counted(checkpoint: Checkpoint) -> str:
        found.append(checkpoint.folder)
        return fingerprint(checkpoint)

    monkeypatch.setattr(Checkpoint, "fingerprint", counted)
    return found


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("export", "run=DIR", folder="a")` is `python -m pipelines.export run=DIR` in this
    process, with `output_dir` in the folder of the test. A plan measures no rate unless told to.

    Args:
        folder: the command's name by default; None for no `output_dir`.
    """
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: object, folder: str | None = "") -> Outcome:
        given = folder is None or any(str(word).startswith("output_dir=") for word in words)
        place = [] if given else [f"output_dir={tmp_path / (folder or command)}"]
        quick = ["measure_rate=false"] if command == "plan" else []
        return run_command(command, *place, *quick, *effective(list(map(str, words))))

    return run


Search = Callable[..., Outcome]


@pytest.fixture
def search(cli: Cli, arguments: list[str]) -> Search:
    """`search("search.target_ratio=0.5", folder="a")` prunes the tiny model with these options on
    top; with `bare` they are all.
    """

    def run(*words: str, folder: str = "run", bare: bool = False) -> Outcome:
        return cli("prune", *([] if bare else arguments), *words, folder=folder)

    return run


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Outcome:
    """What `search()` gives. For reading: see `ended`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return searched(folder, *tiny_search(checkpoint_folder, token_file))


@pytest.fixture
def ended(tmp_path: Path, store_and_tracking: list[str], undisturbed: Outcome) -> Outcome:
    """As if the test had begun with `search()`: run, store and MLflow are in its folder."""
    _artifact_repos_cache.clear()  # by the run's id, which all copies share
    there, here = str(undisturbed.folder.parent), str(tmp_path)
    shutil.copytree(there, here, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(there, here))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as mlflow, mlflow:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            mlflow.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (there, here))
    return replace(undisturbed, folder=tmp_path / "run")
