"""What is exported, whatever the format: a dense model in its channel order, and the shape that is
left of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pruning.models.families import Family
from pruning.models.geometry import Geometry
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A dense model, sorted, with what describes it.

    Args:
        model: weights as they are stored; writers cast one tensor at a time.
        tokenizer_folder: the dense checkpoint's folder.
        dtype: of the tensors that are written.
    """

    model: PreTrainedModel
    family: Family
    geometry: Geometry
    shape: ModelShape
    tokenizer_folder: Path
    dtype: torch.dtype
