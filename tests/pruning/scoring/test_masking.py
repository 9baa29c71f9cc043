"""Going from shape to shape, with every family. Leaving a mask is part of a family's contract."""

from __future__ import annotations

import pytest
import torch

from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked, masking
from pruning.shape import Removal
from tests.conftest import tiny_config, tiny_model
from tests.pruning.models.test_families import HARD, logits


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def dense(request: pytest.FixtureRequest) -> LoadedModel:
    return LoadedModel.of(tiny_model(tiny_config(request.param)))


def test_a_mask_goes_from_shape_to_shape(dense: LoadedModel) -> None:
    """As if each had been made from the dense model, also where a block grows again."""
    model = dense.model
    whole = dense.geometry.dense
    shapes = [whole, HARD, whole.without(Removal("mlp", 2, 0)), HARD, whole]
    shapes += [
        HARD.without(Removal("attention", layer, 0))
        for layer, kept in enumerate(HARD.layers)
        if kept.kv_heads
    ]
    expected = []
    for shape in shapes:
        with masked(dense, shape):
            expected.append(logits(model))
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    with masking(dense) as become:
        for shape, alone in zip(shapes, expected, strict=True):
            become(shape)
            assert torch.equal(logits(model), alone), shape.text
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert torch.equal(logits(model), expected[0])


def test_a_mask_touches_what_changes_alone(dense: LoadedModel) -> None:
    """Most of a candidate is as it was in the one before."""
    layers = dense.layers

    def blocks() -> list[dict[str, int]]:
        return [
            {name: id(parameter) for name, parameter in layer.named_parameters()}
            for layer in layers
        ]

    with masking(dense) as become:
        become(HARD)
        before = blocks()
        become(HARD.without(Removal("mlp", 3, 0)))
        assert blocks()[:3] == before[:3]
        assert blocks()[3].keys() < before[3].keys()


def test_narrowed_weights_take_no_gradient_and_whole_ones_are_the_models_own(
    dense: LoadedModel,
) -> None:
    parameters = {name: id(parameter) for name, parameter in dense.model.named_parameters()}
    with masking(dense) as become:
        become(HARD)
        narrowed = [
            parameter
            for name, parameter in dense.model.named_parameters()
            if id(parameter) != parameters[name]
        ]
        assert narrowed
        assert not any(parameter.requires_grad for parameter in narrowed)
        become(dense.geometry.dense)
        found = {name: id(parameter) for name, parameter in dense.model.named_parameters()}
        assert found == parameters
