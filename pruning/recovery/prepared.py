"""A dense model made ready for one shape: weights sorted, what training added to the matrices of
that shape, and what compensates for narrowed blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pruning.compensation.least_squares import compensation_of, one_thread
from pruning.importance.channel_order import ChannelOrder, reorder
from pruning.models.families import cut_views
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.adapters import Adapters, read_adapters
from pruning.shape import LayerShape, ModelShape


def prepared(dense: LoadedModel, order: ChannelOrder) -> LoadedModel:
    """Sorts the weights of a dense model as stored, in place, by an order; the model, with what
    the order says of compensation and recovery.

    A recovered model is right in the shape that it was recovered in, and in no other.

    Raises:
        InputError: statistics or adapters are not there, or not those of the order.
    """
    reorder(dense, order)
    if order.recovery is not None:
        path, fingerprint = Path(order.recovery.path), order.recovery.adapters
        merge_adapters(dense, read_adapters(path, fingerprint=fingerprint))
    return replace(dense, compensation=compensation_of(order, dense.geometry))


@torch.no_grad()
def merge_adapters(dense: LoadedModel, adapters: Adapters) -> None:
    """Adds what was trained to what remains of each matrix of a dense, sorted model, in place: in
    float32, rounded once to the type of the weights.

    Compensation adds to columns that stay, so that it may come before or after. On a CPU one thread
    computes, so that every process makes the same bits.
    """
    shape = ModelShape.parse(adapters.shape)
    with one_thread():
        for key, added in adapters.added():
            number, _, module = key.partition(".")
            for view, part in _parts(dense, shape, int(number), module, added):
                view.copy_(view.float() + part.to(view.device))


def _parts(
    dense: LoadedModel, shape: ModelShape, layer: int, module: str, added_OI: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each part of a matrix that remains, as a view, and what is added to it."""
    family, whole = dense.family, dense.geometry.dense.layers[layer]
    left = shape.layers[layer]
    kept = LayerShape(left.kv_heads or whole.kv_heads, left.mlp_channels or whole.mlp_channels)
    for block, cuts in ((family.attention, family.attention_cuts), (family.mlp, family.mlp_cuts)):
        for cut in cuts:
            if f"{block}.{cut.module}" == module:
                owner = dense.layers[layer].get_submodule(block)
                views = [view for view, _ in cut_views(cut, owner, dense.geometry, kept, whole)]
                parts = added_OI.split([view.shape[cut.dim] for view in views], dim=cut.dim)
                yield from zip(views, parts, strict=True)
                return
    weight = dense.layers[layer].get_submodule(module).weight
    assert isinstance(weight, torch.Tensor)
    yield weight, added_OI
