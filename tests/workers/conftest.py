"""What the pool's tests score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pruning.models.checkpoint import Checkpoint
from workers.tasks import EvaluatorSpec


@pytest.fixture
def spec(checkpoint_folder: Path, token_file: Path, tmp_path: Path) -> EvaluatorSpec:
    """On a copy of the tiny checkpoint, which evaluators leave their marks beside."""
    ids = load_file(token_file)["input_ids"]
    folder = shutil.copytree(checkpoint_folder, tmp_path / "model")
    return EvaluatorSpec(
        Checkpoint(folder), "float32", {"block": ids[:8], "width": ids[:4]}, batch_size=2
    )
