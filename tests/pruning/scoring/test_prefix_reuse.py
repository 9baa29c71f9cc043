"""Models on which running only the layers above a change is not enough are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pruning.errors import InputError
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.prefix_reuse import require_prefix_reuse
from pruning.scoring.residual import require_plain_residual
from tests.conftest import tiny_config, tiny_model, tokens


@pytest.fixture
def dense() -> LoadedModel:
    return LoadedModel.of(tiny_model(tiny_config("llama", attention_bias=False, mlp_bias=False)))


def change_layer(dense: LoadedModel, index: int, change: Any) -> None:
    """What a layer returns goes through a function."""
    layer = dense.model.model.layers[index]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))


def test_a_model_that_behaves_is_accepted(dense: LoadedModel) -> None:
    require_prefix_reuse(dense, tokens(1, 8))
    change_layer(dense, 1, lambda hidden: hidden * torch.nan)
    require_prefix_reuse(dense, tokens(1, 8))  # weights without numbers are another check's


def test_a_layer_that_remembers_is_refused(dense: LoadedModel) -> None:
    """It computes something else each time that it runs."""
    calls: list[None] = []

    def drift(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return hidden * len(calls)

    change_layer(dense, 1, drift)
    with pytest.raises(InputError, match=r"'llama', running only the layers above a change"):
        require_prefix_reuse(dense, tokens(1, 8))


@pytest.mark.parametrize("broken", [1, 2])
def test_a_result_that_is_once_no_number_is_refused(dense: LoadedModel, broken: int) -> None:
    """In the run of all layers, or in the one that is reused."""
    calls: list[None] = []

    def change(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return hidden * torch.nan if len(calls) == broken else hidden

    change_layer(dense, 1, change)
    with pytest.raises(InputError, match=r"gives another result than running all \(.*nan"):
        require_prefix_reuse(dense, tokens(1, 8))


def test_architectures_that_are_pruned_by_whole_blocks_are_accepted() -> None:
    config = tiny_config("starcoder2")
    require_prefix_reuse(LoadedModel.of(tiny_model(config)), tokens(1, 8))


@pytest.mark.parametrize("require", [require_prefix_reuse, require_plain_residual])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate"),
    ],
)
def test_full_memory_is_not_taken_for_a_wrong_architecture(
    dense: LoadedModel, error: RuntimeError, require: Callable[..., None]
) -> None:
    def full(_hidden: torch.Tensor) -> None:
        raise error

    change_layer(dense, 1, full)
    batch = [tokens(1, 8)] if require is require_prefix_reuse else []
    with pytest.raises(type(error)) as raised:
        require(dense, *batch)
    assert raised.value is error


def test_a_layer_that_returns_something_else_is_refused(dense: LoadedModel) -> None:
    change_layer(dense, 1, lambda hidden: [hidden])
    with pytest.raises(InputError, match=r"blocks of architecture 'llama' cannot be taken out"):
        require_prefix_reuse(dense, tokens(1, 8))
