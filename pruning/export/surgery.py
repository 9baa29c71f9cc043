"""A shape as smaller tensors: what a mask shows as views becomes the tensors of a smaller model,
one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning.errors import InputError
from pruning.models.loaded_model import BlockName, LoadedModel
from pruning.scoring.residual import require_plain_residual
from pruning.shape import LayerShape, ModelShape


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """One layer of a pruned model, and the layers of the dense one that its blocks come from.

    A block that is gone has no source (None) and the size 0.
    """

    attention: int | None
    mlp: int | None
    kv_heads: int
    mlp_channels: int

    @property
    def source(self) -> int:
        """The dense layer that everything else of this layer comes from."""
        source = self.attention if self.attention is not None else self.mlp
        assert source is not None
        return source


def pruned_layers(shape: ModelShape, *, pair: bool) -> tuple[PrunedLayer, ...]:
    """The layers that a shape needs. Layers without any block are gone.

    Args:
        pair: an attention block whose MLP is gone and the next MLP block whose attention is gone
            become one layer, which is the same function where each block adds to the residual
            stream before the next one reads it (docs/concepts/formats.md, "Rules for every
            format").

    Raises:
        InputError: nothing is left.
    """
    layers: list[PrunedLayer] = []
    for index, layer in enumerate(shape.layers):
        attention = index if layer.kv_heads else None
        mlp = index if layer.mlp_channels else None
        if pair and attention is None and mlp is not None and layers and layers[-1].mlp is None:
            before = layers.pop()
            layers.append(PrunedLayer(before.attention, mlp, before.kv_heads, layer.mlp_channels))
        elif attention is not None or mlp is not None:
            layers.append(PrunedLayer(attention, mlp, layer.kv_heads, layer.mlp_channels))
    if not layers:
        raise InputError(f"shape: {shape.text} has no block left, so there is no model to make")
    return tuple(layers)


def pruned_tensors(
    loaded: LoadedModel, layers: Sequence[PrunedLayer]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor of the pruned model, layer by layer, cut from a dense, sorted
    one.

    Names are those of the dense model with the new layer numbers. Values are views of the dense
    weights where one part is cut, small copies where a fused projection is. Tied weights come once,
    norms of removed blocks not at all.

    Raises:
        InputError: a layer without blocks is not the same as no layer.
        ValueError: a block is narrowed in a family that is pruned by whole blocks only.
    """
    family, geometry = loaded.family, loaded.geometry
    dense = geometry.dense.layers[0]
    if not family.prunes_widths and any(
        layer.kv_heads not in (0, dense.kv_heads)
        or layer.mlp_channels not in (0, dense.mlp_channels)
        for layer in layers
    ):
        raise ValueError("this family is pruned by whole blocks only: its widths cannot be cut")
    require_plain_residual(loaded)
    prefix = family.layers + "."
    inside: list[dict[str, torch.Tensor]] = [{} for _ in range(geometry.num_layers)]
    seen: set[int] = set()
    for name, tensor in loaded.model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            inside[int(index)][rest] = tensor
        else:
            yield name, tensor
    for number, layer in enumerate(layers):
        for rest, tensor in _tensors_of(layer, inside, loaded):
            yield f"{prefix}{number}.{rest}", tensor


def _tensors_of(
    layer: PrunedLayer, inside: Sequence[dict[str, torch.Tensor]], loaded: LoadedModel
) -> Iterator[tuple[str, torch.Tensor]]:
    """Attention, MLP and their norms each from the dense layer that they come from; the rest from
    `layer.source`.
    """
    family = loaded.family
    attention, mlp = (family.attention, *family.attention_norms), (family.mlp, *family.mlp_norms)
    for source in sorted({index for index in (layer.attention, layer.mlp) if index is not None}):
        for rest, tensor in inside[source].items():
            if _belongs(rest, attention):
                if layer.attention == source:
                    yield rest, _cut(rest, tensor, loaded, source, "attention", layer)
            elif _belongs(rest, mlp):
                if layer.mlp == source:
                    yield rest, _cut(rest, tensor, loaded, source, "mlp", layer)
            elif layer.source == source:
                yield rest, tensor


def _cut(
    name: str,
    tensor: torch.Tensor,
    loaded: LoadedModel,
    source: int,
    block: BlockName,
    layer: PrunedLayer,
) -> torch.Tensor:
    """What remains of one tensor of a block of the dense layer `source`."""
    family, dense = loaded.family, loaded.geometry.dense.layers[source]
    path, cuts = (
        (family.attention, family.attention_cuts)
        if block == "attention"
        else (family.mlp, family.mlp_cuts)
    )
    kept = LayerShape(layer.kv_heads or dense.kv_heads, layer.mlp_channels or dense.mlp_channels)
    module, _, kind = name.removeprefix(path + ".").rpartition(".")
    for cut in cuts:
        if cut.module == module and (kind == "weight" or cut.dim == 0):
            index = ("weight", "bias").index(kind)
            views = [view[index] for view in loaded.remaining(source, block, cut, kept)]
            parts = [view for view in views if view is not None]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=cut.dim)
    return tensor


def _belongs(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(module + ".") for module in modules)
