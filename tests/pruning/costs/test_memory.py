"""Memory to serve a model, against models that were run."""

from __future__ import annotations

import pytest
import torch

from pruning.costs.accounting import Accounting
from pruning.costs.memory import MemoryLoad, bytes_of, shown_bytes
from pruning.costs.speed import SpeedSettings
from pruning.costs.timed_runs import timed_runs
from pruning.errors import InputError
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("16GB", 16 * 10**9), ("1.5 GiB", 3 * 2**29), ("100MB", 10**8), (".5MiB", 2**19),
        ("7 B", 7), ("2kB", 2000), ("2 KB", 2000), ("2kiB", 2048), ("2KiB", 2048),
        ("3TB", 3 * 10**12), ("3TiB", 3 * 2**40),
    ],
)  # fmt: skip
def test_sizes(size: str, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", ["16G", "GB", "-1GB", "0GB", "1 000MB", "1e3MB", ""])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(InputError, match="a size is a number above 0 with its unit"):
        bytes_of(size)


def test_sizes_as_people_read_them() -> None:
    assert [shown_bytes(each) for each in (12, 999, 1000, 1234, 269_030_016, 1.5e12)] == [
        "12 B", "999 B", "1 kB", "1.234 kB", "269 MB", "1.5 TB"
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_cache_is_what_a_model_holds(family: str) -> None:
    """Of two sequences of 24 + 16 tokens, which layers with a window hold a part of."""
    model = tiny_model(tiny_config(family)).eval()
    [run] = timed_runs({"dense": model}, SpeedSettings(2, 24, 16, 1))["dense"]
    accounting, load = Accounting(model.config), MemoryLoad(40, 2, "float32")
    windows = {reads.window for reads in accounting._reads} - {None}
    held, counted = run.kv_cache_bytes, load.cache_bytes(accounting, accounting.dense)
    assert counted is not None
    if windows:  # transformers keeps one token less than the window until the next one comes
        assert held < counted <= held * 1.2
        assert counted < 40 * 2 * accounting.kv_cache_bytes_per_token(
            accounting.dense, bytes_per_value=4
        )
    else:
        assert held == counted


def test_weights_are_those_of_a_checkpoint() -> None:
    model = tiny_model(tiny_config("llama")).to(torch.bfloat16)
    accounting, load = Accounting(model.config), MemoryLoad(8, 1, "bfloat16")
    stored = sum(parameter.nbytes for parameter in model.parameters())
    assert load.weight_bytes(accounting, accounting.dense) == stored


def test_it_is_weights_and_cache() -> None:
    """Two KV heads of layer 0 are left; no norm goes, so that all that is counted is stored."""
    accounting, load = Accounting(tiny_config("llama")), MemoryLoad(100, 3, "float16")
    shape = ModelShape.parse("2x48 3x48*3")
    cache = 3 * 100 * (2 + 3 * 3) * 2 * 8 * 2
    assert load.cache_bytes(accounting, shape) == cache
    assert load.total_bytes(accounting, shape) == 2 * accounting.num_parameters(shape) + cache
    assert load.to_json(accounting, shape)["kv_cache"] == {
        "dense": cache // 11 * 12,
        "pruned": cache,
    }


def test_where_the_cache_is_not_known_the_sum_is_not() -> None:
    accounting = Accounting(tiny_config("llama", num_kv_shared_layers=2))
    load = MemoryLoad(100, 3, "float16")
    assert load.cache_bytes(accounting, accounting.dense) is None
    assert load.total_bytes(accounting, accounting.dense) is None


def test_it_is_a_sum_over_blocks() -> None:
    """As a solver needs it: changes of several blocks add up."""
    accounting, load = Accounting(tiny_config("llama")), MemoryLoad(100, 3, "float16")
    shapes = ("3x48*4", "1x48 3x48*3", "3x48 3x0 3x48*2", "1x48 3x0 3x48*2")
    dense, first, second, both = (
        load.total_bytes(accounting, ModelShape.parse(text)) for text in shapes
    )
    assert None not in (dense, first, second, both)
    assert dense - both == (dense - first) + (dense - second) > 0  # type: ignore[operator]
