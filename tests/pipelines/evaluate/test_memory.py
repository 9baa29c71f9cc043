"""Memory that an evaluation plans for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.evaluate.measurement import _needed_bytes
from pipelines.evaluate.models import EvaluatedModel, ModelsUnderTest
from pruning.importance.channel_order import ChannelOrder, CompensationSource
from pruning.models.checkpoint import Checkpoint
from pruning.models.geometry import Geometry


def test_what_compensates_a_model_counts(checkpoint_folder: Path) -> None:
    """Refitted projections of 4 layers, 48 + 48 columns of 48 values in float32, and 4.5 matrices
    of 48 x 48 in float64.
    """
    checkpoint = Checkpoint(checkpoint_folder)
    plain = ChannelOrder.as_stored(Geometry.of(checkpoint.config()))
    source = CompensationSource("statistics.safetensors", "0" * 32, 0.01)

    def needed(order: ChannelOrder | None) -> int:
        dense = EvaluatedModel("dense", checkpoint, "f" * 32, "float32", 70_000)
        pruned = EvaluatedModel("pruned", checkpoint, "f" * 32, "float32", 60_000, None, order)
        return _needed_bytes(ModelsUnderTest("tiny", "", (dense, pruned), None, None), 1, 32)

    assert needed(plain) == needed(None)
    compensated = needed(replace(plain, compensation=source))
    assert compensated - needed(None) == 4 * 96 * 48 * 4 + 9 * 8 * 48 * 48 // 2
