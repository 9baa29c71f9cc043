"""A dense model in memory, and what pruning needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pruning.models.families import Family, blocks, family_of
from pruning.models.geometry import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A dense model in memory, how its family is laid out, and its sizes."""

    model: PreTrainedModel
    family: Family
    geometry: Geometry

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
