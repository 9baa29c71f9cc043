"""What the pool's tests score."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pruning.checkpoint import Checkpoint
from workers.tasks import EvaluatorSpec


@pytest.fixture
def spec(checkpoint_folder: Path, token_file: Path) -> EvaluatorSpec:
    ids = load_file(token_file)["input_ids"]
    return EvaluatorSpec(Checkpoint(checkpoint_folder), "float32", {"block": ids[:8], "width": ids[:4]}, batch_size=2)
