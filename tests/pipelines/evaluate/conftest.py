"""The tiny reader with its tasks, a search of it, and the command that evaluates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import tokens
from tests.documents import TASKS, save_reader, save_tasks
from tests.pipelines.command import Outcome, run_command
from tests.pipelines.conftest import Cli
from tests.tiny_search import places, tiny_search

QUICK = ("evaluation.cost=false",)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reader(tmp_path_factory.mktemp("reader") / "tiny-reader")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tasks(tmp_path_factory.mktemp("tasks"))


Evaluate = Callable[..., Outcome]


@pytest.fixture
def run(data_dir: Path, cli: Cli, store_and_tracking: list[str]) -> Evaluate:
    """`run("model.path=...", folder="a")` evaluates, with what is not given from `mine`."""
    mine = [f"evaluation.data_dir={data_dir}", "model.dtype=float32", *store_and_tracking]

    def call(*overrides: str, folder: str = "evaluation") -> Outcome:
        given = list(overrides)
        if not any(word.startswith(("evaluation.tasks=", "evaluation=")) for word in overrides):
            given.append(f"evaluation.tasks=[{','.join(TASKS)}]")
        names = {word.split("=")[0] for word in overrides}
        names |= {"store.url", "tracking.uri"} if "run" in names else set()  # those of the search
        given += [word for word in mine if word.split("=")[0] not in names]
        return cli("evaluate", *given, folder=folder)

    return call


@pytest.fixture(scope="session")
def searched(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of the tiny reader, with a store and an MLflow of its own."""
    folder = tmp_path_factory.mktemp("searched")
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, folder / "tokens.safetensors")
    outcome = run_command(
        "prune",
        *tiny_search(reader, folder / "tokens.safetensors"),
        *places(folder),
        f"output_dir={folder}/search",
    )
    assert outcome.status == 0, outcome.output
    return folder / "search"
