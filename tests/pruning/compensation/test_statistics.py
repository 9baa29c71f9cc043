"""What statistics are on disk and to those who hold them, with matrices small enough to write down;
what they are of a model is held in test_least_squares.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.compensation.least_squares import RIDGE, one_thread, relative_error
from pruning.compensation.statistics import (
    BlockStatistics,
    LayerStatistics,
    check_statistics,
    collect_statistics,
    order_of,
    read_gram,
    stored_fingerprint,
)
from pruning.compensation.stored_layer import StoredLayer
from pruning.errors import InputError
from pruning.models.loaded_model import LoadedModel
from tests.conftest import tiny_config, tiny_model, tokens


def layer(attention: int = 2, mlp: int = 3, scale: float = 1.0) -> LayerStatistics:
    return LayerStatistics(
        torch.arange(attention**2, dtype=torch.float32).reshape(attention, attention) * scale,
        torch.arange(mlp**2, dtype=torch.float32).reshape(mlp, mlp) * -scale,
    )


STATISTICS = BlockStatistics((layer(), layer(4, 5)), num_tokens=77)


@pytest.mark.parametrize("num_layers", [1, 2, 5, 11])
def test_a_file_is_safetensors_as_its_library_reads_it(num_layers: int, tmp_path: Path) -> None:
    """Data begins at a multiple of eight bytes, as the format wants it."""
    layers = tuple(layer(2 + index, 3, index + 1) for index in range(num_layers))
    statistics = BlockStatistics(layers, 77)
    statistics.save(tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert len(found) == 2 * num_layers + 1
    assert int(found["num_tokens"]) == 77
    for index, each in enumerate(layers):
        for block in ("attention", "mlp"):
            assert torch.equal(found[f"{index}.{block}"], getattr(each, block))
            gram = read_gram(tmp_path / "file", index, block)
            assert torch.equal(gram, getattr(each, block))
    content = (tmp_path / "file").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"] == {"fingerprint": statistics.fingerprint}
    assert stored_fingerprint(tmp_path / "file") == statistics.fingerprint
    check_statistics(tmp_path / "file", statistics.fingerprint)


def test_a_fingerprint_sees_tokens_values_and_shapes() -> None:
    twice = BlockStatistics((layer(), layer(4, 5, 2.0)), 77)
    one, other = (
        BlockStatistics((LayerStatistics(torch.ones(a, a), torch.ones(b, b)),), 77)
        for a, b in ((2, 3), (3, 2))
    )
    found = [each.fingerprint for each in (STATISTICS, replace(STATISTICS, num_tokens=78), twice)]
    assert len({*found, one.fingerprint, other.fingerprint}) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in found)
    assert BlockStatistics((layer(), layer(4, 5)), 77).fingerprint == STATISTICS.fingerprint


def test_layers_are_joined_in_their_order() -> None:
    first, second = STATISTICS.layers
    assert isinstance(first, LayerStatistics)
    assert isinstance(second, LayerStatistics)
    assert BlockStatistics.of({1: second, 0: first}, 77).layers == (first, second)


def test_files_that_hold_no_such_statistics_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain")
    assert stored_fingerprint(tmp_path / "plain") == ""
    with pytest.raises(InputError, match="holds statistics , not abc"):
        check_statistics(tmp_path / "plain", "abc")
    (tmp_path / "broken").write_text("no safetensors")
    for name in ("broken", "none"):
        with pytest.raises(InputError, match=f"{name}: the statistics that .* cannot be read"):
            check_statistics(tmp_path / name, "abc")


def test_the_statistics_of_one_layer_are_read_as_they_were_written(tmp_path: Path) -> None:
    order = ((1, 0), (2, 0, 1))
    StoredLayer.save(tmp_path / "layer", layer(), order, 77)
    found = StoredLayer(tmp_path / "layer")
    assert torch.equal(found.attention, layer().attention)
    assert torch.equal(found.mlp, layer().mlp)
    assert (found.order, found.num_tokens) == (order, 77)
    StoredLayer.save(tmp_path / "other", layer(4, 5), ((0,), (0,)), 77)
    stored = BlockStatistics((found, StoredLayer(tmp_path / "other")), 77)
    assert stored.fingerprint == STATISTICS.fingerprint


def test_the_orders_of_layers_are_rows_of_one_order() -> None:
    order = order_of([((1, 0), (2, 0, 1)), ((0, 1), (1, 2, 0))])
    assert order.kv_heads.tolist() == [[1, 0], [0, 1]]
    assert order.mlp_channels.tolist() == [[2, 0, 1], [1, 2, 0]]
    assert order.kv_heads.dtype == order.mlp_channels.dtype == np.dtype(np.int32)


def test_sums_are_of_the_layers_that_are_wanted_and_leave_no_hook() -> None:
    dense = LoadedModel.of(tiny_model(tiny_config("llama", num_hidden_layers=2)))
    batch = tokens(2, 8)
    once, twice = (collect_statistics(dense, batches, [1]) for batches in ([batch], [batch] * 2))
    assert list(once) == [1]
    assert torch.equal(twice[1].attention, 2 * once[1].attention)
    assert torch.equal(twice[1].mlp, 2 * once[1].mlp)
    assert list(collect_statistics(dense, [batch])) == [0, 1]
    assert not any(module._forward_pre_hooks for module in dense.model.modules())


def test_one_thread_computes_and_then_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen = []

        @one_thread()
        def fail() -> None:
            seen.append(torch.get_num_threads())
            raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert seen == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_relative_error_is_of_what_was_returned(scale: float) -> None:
    """Of W a with W = [[1, 2], [0, 3]] and independent a of moments 4 and 1, E |W a|^2 = 4 + 4 + 9;
    without the second column, 13 of it is lost.
    """
    weight = scale * torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    gram = torch.diag(torch.tensor([4.0, 1.0]))
    assert relative_error(weight, weight[:, :1], gram) == pytest.approx(13 / 17)
    half = scale * torch.tensor([[0.5], [0.0]])
    assert relative_error(weight, half, gram) == pytest.approx(14 / 17)
    together = torch.tensor([[4.0, 1.0], [1.0, 1.0]])  # E |W a|^2 = 4 + 4 + 4 + 9
    assert relative_error(weight, weight[:, :1], together) == pytest.approx(13 / 21)


def test_the_ridge_is_one_of_those_that_serve_alike() -> None:
    """As measured on SmolLM2-135M: from 0.001 to 0.1."""
    assert 0.001 <= RIDGE <= 0.1
