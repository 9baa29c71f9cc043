"""The command that sweeps, over the tiny model."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli

TARGETS = (0.10, 0.14, 0.18, 0.22, 0.26, 0.30, 0.34)
SEVEN = f"search.target_ratio=[{','.join(map(str, TARGETS))}]"


@pytest.fixture
def base(arguments: list[str]) -> list[str]:
    return [word for word in arguments if not word.startswith("search.target_ratio")]


Sweep = Callable[..., Outcome]


@pytest.fixture
def run_sweep(base: list[str], cli: Cli) -> Sweep:
    """Of the tiny model; `command="prune"` is one search with the same options."""

    def run(
        *words: str, folder: str = "sweep", bare: bool = False, command: str = "sweep"
    ) -> Outcome:
        return cli(command, *([] if bare else base), *words, folder=folder)

    return run


def report_of(outcome: Outcome) -> dict[str, Any]:
    data: dict[str, Any] = outcome.read("sweep.json")
    return data


def rows_in_store(path: Path) -> int:
    with sqlite3.connect(path) as store:
        return int(store.execute("select count(*) from scores").fetchone()[0])
