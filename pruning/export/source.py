"""What is exported, whatever the format: a dense model in its channel order, and the shape that
remains of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, eq=False)
class ExportSource:
    """What every format writes.

    Args:
        dense: sorted, with weights as they are stored; writers cast one tensor at a time.
        shape: what remains of it.
        tokenizer_folder: the dense checkpoint's folder.
        dtype: of the tensors that are written.
    """

    dense: LoadedModel
    shape: ModelShape
    tokenizer_folder: Path
    dtype: torch.dtype
