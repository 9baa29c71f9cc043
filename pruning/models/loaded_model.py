"""A dense model in memory, and what pruning needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.families import Cut, Family, blocks, cut_views, family_of
from pruning.models.geometry import Geometry
from pruning.shape import LayerShape

BlockName = Literal["attention", "mlp"]


class Refit(Protocol):
    """What takes the place of the columns that stay of a narrowed `o_proj` or `down_proj`."""

    def weight(
        self, weight_DC: torch.Tensor, layer: int, block: BlockName, kept: int
    ) -> torch.Tensor:
        """[D, kept], from the whole sorted projection [D, C] of an `attention` or `mlp` block."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A dense model in memory, how its family is laid out, and its sizes.

    Args:
        compensation: of narrowed blocks; None: the columns that stay are as they were.
    """

    model: PreTrainedModel
    family: Family
    geometry: Geometry
    compensation: Refit | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> LoadedModel:
        """Family and sizes are those of its configuration.

        Raises:
            InputError: it cannot be pruned; see `family_of`.
        """
        return cls(model, family_of(model.config, model), Geometry.of(model.config))

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        return self.family.decoder_layers(self.model)

    @property
    def blocks(self) -> list[tuple[nn.Module, nn.Module]]:
        """The attention and the MLP module of every layer."""
        return blocks(self.model, self.family)

    def remaining(
        self, layer: int, block: BlockName, cut: Cut, kept: LayerShape
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias of each part of `cut`, narrowed to what `kept` keeps: views of the sorted
        weights, or what compensates for the columns that go.
        """
        path = self.family.attention if block == "attention" else self.family.mlp
        module, dense = self.layers[layer].get_submodule(path), self.geometry.dense.layers[layer]
        views = cut_views(cut, module, self.geometry, kept, dense)
        weight = module.get_submodule(cut.module).weight
        assert isinstance(weight, torch.Tensor)
        if self.compensation is None or cut.dim == 0 or views[0][0].shape == weight.shape:
            return views
        [(view, bias)] = views
        return [(self.compensation.weight(weight, layer, block, view.shape[1]), bias)]
