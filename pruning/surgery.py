"""A shape as smaller tensors: what a mask shows as views becomes the model itself."""

from __future__ import annotations

import torch
from torch import nn

from pruning.families import Cut, Family, Geometry, blocks, cut_views
from pruning.masking import RemovedAttention, RemovedMLP, set_head_counts
from pruning.shape import LayerShape, ModelShape


@torch.inference_mode()
def cut_model(model: nn.Module, family: Family, geometry: Geometry, shape: ModelShape) -> None:
    """Cuts a dense, sorted model down to `shape`, in place, one layer at a time. Norms of removed blocks stay, unused.

    Raises:
        ValueError: the shape narrows a block of a family that is pruned by whole blocks only.
    """
    full = geometry.dense
    layers = family.decoder_layers(model)
    for index, (attention, mlp) in enumerate(blocks(model, family)):
        kept, dense = shape.layers[index], full.layers[index]
        if kept.kv_heads == 0:
            layers[index].set_submodule(family.attention, RemovedAttention())
        elif kept.kv_heads < dense.kv_heads:
            _cut(attention, family.attention_cuts, geometry, kept, dense)
            set_head_counts(attention, family, geometry, kept)
        if kept.mlp_channels == 0:
            layers[index].set_submodule(family.mlp, RemovedMLP())
        elif kept.mlp_channels < dense.mlp_channels:
            _cut(mlp, family.mlp_cuts, geometry, kept, dense)


def _cut(block: nn.Module, cuts: tuple[Cut, ...], geometry: Geometry, kept: LayerShape, dense: LayerShape) -> None:
    if not cuts:
        raise ValueError("this family is pruned by whole blocks only: its widths cannot be cut")
    for cut in cuts:
        target = block.get_submodule(cut.module)
        views = cut_views(cut, block, geometry, kept, dense)
        weight = torch.cat([view for view, _ in views], dim=cut.dim).contiguous().clone()
        biases = [bias for _, bias in views if bias is not None]
        target.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        if biases and cut.dim == 0:
            target.register_parameter("bias", nn.Parameter(torch.cat(biases).clone(), requires_grad=False))
        if isinstance(target, nn.Linear):
            target.out_features, target.in_features = weight.shape
