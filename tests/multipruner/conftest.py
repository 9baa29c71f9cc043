"""Searches of tiny models from Python, with everything they write in a folder of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multipruner
from tests.pipelines.conftest import empty_mlflow, store_and_tracking  # noqa: F401 - fixtures

CALIBRATION = {
    "num_block_samples": 8,
    "num_width_samples": 6,
    "num_heldout_samples": 4,
    "sequence_length": 32,
    "batch_size": 4,
}
SEARCH = {"distribution": (40, 40, 20), "mlp_group_channels": 16}
"""With `CALIBRATION`, the search of tests/tiny_search.py."""

Prune = Callable[..., multipruner.Run]


def options(token_file: Path, places: Path) -> dict[str, Any]:
    """Those of tests/tiny_search.py, as a program gives them, without model and target."""
    return {
        "model.dtype": "float32",
        "calibration": "tokens",
        "calibration.path": token_file,
        **{f"calibration.{name}": value for name, value in CALIBRATION.items()},
        "cluster": "inline",
        "store.url": f"sqlite:///{places}/scores.db",
        "tracking": {"uri": f"sqlite:///{places}/mlflow.db"},
    }


@pytest.fixture
def tiny(
    token_file: Path,
    tmp_path: Path,
    store_and_tracking: list[str],  # noqa: F811 - a fixture
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Options of a search of a second, whose folders are in that of the test."""
    monkeypatch.chdir(tmp_path)
    return options(token_file, tmp_path)


@pytest.fixture
def prune(tiny: dict[str, Any], checkpoint_folder: Path) -> Prune:
    """`prune(output_dir="a")` prunes the tiny model."""

    def run(**changes: Any) -> multipruner.Run:
        search = {} if "search" in changes else {"search": SEARCH}
        return multipruner.prune(checkpoint_folder, target=0.25, **tiny | search | changes)

    return run
