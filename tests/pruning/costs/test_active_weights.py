"""Weights that one token meets, of blocks made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from pruning.costs.active_weights import active_weights

CONFIG = LlamaConfig(num_local_experts=4, num_experts_per_tok=2)


class Matrix(nn.Module):
    """One parameter that no Linear holds."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def block(**modules: nn.Module) -> nn.Module:
    """With a router of 5 x 4, and a norm, which is no matrix."""
    return nn.ModuleDict({"router": nn.Linear(5, 4), "norm": nn.LayerNorm(5), **modules})


def test_a_token_meets_as_many_experts_as_it_is_sent_to() -> None:
    experts, shared = Matrix(4, 6, 5), nn.Linear(5, 3)
    assert active_weights(block(experts=experts, shared=shared), CONFIG) == 20 + 2 * 30 + 15
    assert active_weights(block(gate=Matrix(4, 5)), CONFIG) == 20 + 20


@pytest.mark.parametrize(
    "modules",
    [
        {"experts": Matrix(4, 5)},
        {"stacked": Matrix(4, 6, 5)},
        {"gate": Matrix(5, 4)},
        {"experts": Matrix(6, 4, 5)},
        {"experts": nn.ModuleList([nn.Linear(5, 6)])},
        {"experts": Matrix(4, 6, 5, 2)},
    ],
)
def test_a_matrix_whose_use_is_not_known(modules: dict[str, nn.Module]) -> None:
    """A vector of each expert, experts under another name, a number that is not theirs."""
    assert active_weights(block(**modules), CONFIG) is None


@pytest.mark.parametrize(
    "config", [LlamaConfig(), LlamaConfig(num_local_experts=4, num_experts=6, moe_k=2)]
)
def test_a_configuration_that_does_not_say_how_many(config: LlamaConfig) -> None:
    assert active_weights(block(experts=Matrix(4, 6, 5)), config) is None
    assert active_weights(block(), config) == 20
