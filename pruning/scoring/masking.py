"""A shape on a live model: narrowed blocks are views of the sorted weights, removed blocks are
no-ops, and leaving undoes everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pruning.models.families import Family
from pruning.models.geometry import Geometry
from pruning.models.loaded_model import BlockName, LoadedModel
from pruning.shape import LayerShape, ModelShape


class RemovedAttention(nn.Module):
    """Stands where an attention block was: adds nothing to the residual stream."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class RemovedMLP(nn.Module):
    """Stands where an MLP block was: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class NarrowedProjection(nn.Module):
    """A fused projection of which each part keeps its first rows: one product per part, joined as
    the block expects them.
    """

    def __init__(self, views: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        super().__init__()
        self.views = views

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [functional.linear(hidden_states, weight, bias) for weight, bias in self.views], dim=-1
        )


@contextmanager
def masked(loaded: LoadedModel, shape: ModelShape) -> Iterator[None]:
    """Makes a dense, sorted model compute as `shape` while the context is open; see `masking`."""
    with masking(loaded) as become:
        become(shape)
        yield


@contextmanager
def masking(loaded: LoadedModel) -> Iterator[Callable[[ModelShape], None]]:
    """A function that makes a dense, sorted model compute as a shape, until it is called with the
    next: only blocks whose size differs are touched. Nothing is copied, but for projections that
    are compensated.

    On the way out, by an exception too, every module and parameter is back in place: the same
    objects, so logits are bit-equal to before.

    The function raises:
        ValueError: the shape narrows a block of a family that is pruned by whole blocks only.
    """
    sizes: dict[tuple[int, BlockName], int] = {}
    undo: dict[tuple[int, BlockName], ExitStack] = {}

    def become(shape: ModelShape) -> None:
        for index, (kept, dense) in enumerate(
            zip(shape.layers, loaded.geometry.dense.layers, strict=True)
        ):
            resize((index, "attention"), kept, kept.kv_heads, dense.kv_heads)
            resize((index, "mlp"), kept, kept.mlp_channels, dense.mlp_channels)

    def resize(block: tuple[int, BlockName], kept: LayerShape, size: int, whole: int) -> None:
        if size == sizes.get(block, whole):
            return
        undo.pop(block, ExitStack()).close()
        sizes[block] = size
        if size < whole:
            undo[block] = ExitStack()
            _mask(undo[block], loaded, *block, kept, removed=size == 0)

    try:
        yield become
    finally:
        for stack in undo.values():
            stack.close()


def _mask(
    undo: ExitStack,
    loaded: LoadedModel,
    layer: int,
    block: BlockName,
    kept: LayerShape,
    *,
    removed: bool,
) -> None:
    """Makes one whole block as large as it is in `kept`."""
    family = loaded.family
    attention = block == "attention"
    if removed:
        _replace_module(
            undo,
            loaded.layers[layer],
            family.attention if attention else family.mlp,
            RemovedAttention() if attention else RemovedMLP(),
        )
        return
    _narrow(undo, loaded, layer, block, kept)
    if attention:
        _set_head_counts(
            undo,
            loaded.layers[layer].get_submodule(family.attention),
            family,
            loaded.geometry,
            kept,
        )


def _set_head_counts(
    undo: ExitStack, attention: nn.Module, family: Family, geometry: Geometry, layer: LayerShape
) -> None:
    """Tells an attention module how many of its heads remain, for the families that read it from
    attributes instead of from the tensors.

    The configuration is shared by all layers, so the module gets its own copy.
    """
    counts = {
        "num_attention_heads": layer.kv_heads * geometry.queries_per_kv_head,
        "num_key_value_heads": layer.kv_heads,
    }
    if not family.head_counts:
        return
    config = copy.copy(attention.config)
    for name in family.head_counts:
        setattr(config, name, counts[name])
        if hasattr(attention, name):
            _set(undo, attention, name, counts[name])
    _set(undo, attention, "config", config)


def _narrow(
    undo: ExitStack, loaded: LoadedModel, layer: int, block_name: BlockName, kept: LayerShape
) -> None:
    family = loaded.family
    path, cuts = (
        (family.attention, family.attention_cuts)
        if block_name == "attention"
        else (family.mlp, family.mlp_cuts)
    )
    block = loaded.layers[layer].get_submodule(path)
    if not cuts:
        raise ValueError(
            "this family is pruned by whole blocks only: its widths cannot be narrowed"
        )
    for cut in cuts:
        views = loaded.remaining(layer, block_name, cut, kept)
        if len(views) > 1:
            _replace_module(undo, block, cut.module, NarrowedProjection(views))
            continue
        target = block.get_submodule(cut.module)
        for name, view in zip(("weight", "bias"), views[0], strict=True):
            if view is not None:
                undo.callback(target.register_parameter, name, getattr(target, name))
                target.register_parameter(name, nn.Parameter(view, requires_grad=False))


def _replace_module(undo: ExitStack, parent: nn.Module, path: str, module: nn.Module) -> None:
    undo.callback(parent.set_submodule, path, parent.get_submodule(path))
    parent.set_submodule(path, module)


def _set(undo: ExitStack, target: Any, name: str, value: Any) -> None:
    undo.callback(setattr, target, name, getattr(target, name))
    setattr(target, name, value)
