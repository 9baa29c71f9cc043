"""A run of `search=allocation`, and `solve` on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.models.checkpoint import Checkpoint
from tests.pipelines.command import Outcome, searched
from tests.pipelines.conftest import Cli
from tests.tiny_search import tiny_search

Solve = Callable[..., Outcome]


@pytest.fixture(scope="package")
def allocated(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Path:
    """A run of `search=allocation`. For reading."""
    folder = tmp_path_factory.mktemp("allocated")
    words = tiny_search(
        checkpoint_folder, token_file, "search.target_ratio=0.12", "search.distribution=[0,1,1]",
        "search.mlp_group_channels=8",
    )  # fmt: skip
    return searched(folder, "search=allocation", *words).folder


@pytest.fixture
def solve(cli: Cli, allocated: Path, monkeypatch: pytest.MonkeyPatch) -> Solve:
    """`solve("search.target_ratio=0.2")`; whoever loads weights fails."""

    def run(*words: str, folder: str = "solved") -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "load", None)
            return cli("solve", f"run={allocated}", *words, folder=folder)

    return run
