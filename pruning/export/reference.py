"""What an export must compute: the logits of the masked model with the weights as written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from pruning.models.loaded_model import BlockName, LoadedModel, Refit
from pruning.scoring.masking import masked
from pruning.shape import ModelShape

_COARSEST_FIRST = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Reference:
    """Logits of the masked model.

    Args:
        logits: [B, T, V].
        dtype: that they were computed in, `float32` wherever memory allows it.
        weights_dtype: of the weights that are compared: as they are written, or the coarser of
            stored and written where they are not compared in float32.
    """

    logits: torch.Tensor
    dtype: str
    weights_dtype: str


@torch.no_grad()
def reference_of(
    dense: LoadedModel,
    shape: ModelShape,
    input_ids_BT: torch.Tensor,
    *,
    stored: str,
    written: str,
    vectors: str | None = None,
) -> Reference:
    """Computed in float32 from weights rounded as they are written, so that nothing but the order
    of sums can differ. Where memory has no room for the model in float32, computed in the model's
    own type from its own weights.

    Args:
        dense: prepared, with weights as they are `stored`. It is left as it was.
        input_ids_BT: int64 token ids.
        stored, written: `float32`, `bfloat16` or `float16`.
        vectors: how norms and biases are written; None: as matrices.
    """
    if _float32_bytes(dense.model) > psutil.virtual_memory().available:
        coarsest = next(dtype for dtype in _COARSEST_FIRST if dtype in (stored, written))
        return Reference(_logits(dense, shape, input_ids_BT), coarsest, coarsest)
    if dense.compensation is not None:
        with masked(dense, shape):  # what compensates is made of the stored weights, and kept
            dense = replace(dense, compensation=_AsWritten(dense.compensation, written))
    with _as_written(dense.model, written, vectors or written):
        return Reference(_logits(dense, shape, input_ids_BT), "float32", written)


def _logits(dense: LoadedModel, shape: ModelShape, input_ids_BT: torch.Tensor) -> torch.Tensor:
    with masked(dense, shape):
        logits: torch.Tensor = dense.model(input_ids_BT, use_cache=False).logits
    return logits


@dataclass(frozen=True, slots=True)
class _AsWritten:
    """Refitted columns, rounded as they are written."""

    refit: Refit
    dtype: str

    def weight(
        self, weight_DC: torch.Tensor, layer: int, block: BlockName, kept: int
    ) -> torch.Tensor:
        return _rounded(self.refit.weight(weight_DC, layer, block, kept), self.dtype)


@contextmanager
def _as_written(model: PreTrainedModel, matrices: str, vectors: str) -> Iterator[None]:
    """While it is open: parameters and saved buffers rounded to their types, in float32, and what
    else the model was built with as a float32 model has it.
    """
    saved = [
        tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.is_floating_point()
    ]
    before = [(tensor, tensor.data) for tensor in [*saved, *model.buffers()]]
    try:
        for name, buffer in _float32_buffers(model).items():
            model.get_buffer(name).data = buffer
        for tensor, data in before[: len(saved)]:
            tensor.data = _rounded(data, matrices if data.dim() > 1 else vectors)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def _float32_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Buffers that a model in a coarser type rounded when it was built, such as the square root
    that Gemma scales embeddings by, as a model in float32 has them.
    """
    coarse = {
        name: buffer.device
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and buffer.dtype != torch.float32
    }
    if not coarse:
        return {}
    with init_empty_weights(include_buffers=False):
        built = dict(type(model)(copy.deepcopy(model.config)).named_buffers())
    return {name: built[name].to(device) for name, device in coarse.items() if name in built}


def _rounded(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(getattr(torch, dtype)).float()


def _float32_bytes(model: nn.Module) -> int:
    """Of the copy that is made."""
    return 4 * sum(parameter.numel() for parameter in model.parameters())
