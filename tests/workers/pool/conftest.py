"""What one process comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pruning.models.checkpoint import Checkpoint
from tests.workers.pool.scoring import Scores, search
from workers.pool.inline_pool import InlinePool
from workers.tasks import EvaluatorSpec


@pytest.fixture(scope="session")
def expected(checkpoint_folder: Path, token_file: Path) -> list[Scores]:
    """Of twelve steps."""
    ids = load_file(token_file)["input_ids"]
    sets = {"block": ids[:8], "width": ids[:4]}
    spec = EvaluatorSpec(Checkpoint(checkpoint_folder), "float32", sets, batch_size=2)
    return search(InlinePool(spec), 12)
