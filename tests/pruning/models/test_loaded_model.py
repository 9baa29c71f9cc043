"""What stays of the weights of a narrowed block, with compensation and without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pruning.models.families import cut_views
from pruning.models.loaded_model import BlockName, LoadedModel
from pruning.shape import LayerShape
from tests.conftest import tiny_config, tiny_model


class Halved:
    """Instead of a compensation: half of what stays."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, int]] = []

    def weight(
        self, weight_DC: torch.Tensor, layer: int, block: BlockName, kept: int
    ) -> torch.Tensor:
        self.asked.append((layer, block, kept))
        return weight_DC[:, :kept] / 2


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_only_projections_out_of_narrowed_blocks_are_compensated(model_type: str) -> None:
    """All else is a view of what was there."""
    plain = LoadedModel.of(tiny_model(tiny_config(model_type)))
    halved = Halved()
    compensated = dataclasses.replace(plain, compensation=halved)
    family, dense = plain.family, LayerShape(3, 48)
    attention, mlp = plain.blocks[2]
    blocks: list[tuple[BlockName, torch.nn.Module, LayerShape, int]] = [
        ("attention", attention, LayerShape(2, 48), 32),
        ("mlp", mlp, LayerShape(3, 16), 16),
    ]
    for block, module, narrowed, kept in blocks:
        cuts = family.attention_cuts if block == "attention" else family.mlp_cuts
        for cut in cuts:
            whole = module.get_submodule(cut.module).weight
            assert isinstance(whole, torch.Tensor)
            for shape in (narrowed, dense):
                views = cut_views(cut, module, plain.geometry, shape, dense)
                halved.asked.clear()
                for loaded in (plain, compensated):
                    parts = loaded.remaining(2, block, cut, shape)
                    refitted = loaded is compensated and cut.dim == 1 and shape == narrowed
                    assert halved.asked == ([(2, block, kept)] if refitted else [])
                    for (weight, bias), (view, its_bias) in zip(parts, views, strict=True):
                        assert torch.equal(weight, whole[:, :kept] / 2 if refitted else view)
                        assert refitted or weight.data_ptr() == view.data_ptr()
                        assert bias is its_bias or torch.equal(bias, its_bias)
