"""Costs that a target is given in."""

from __future__ import annotations

import pytest
from transformers import GPT2Config

from pruning.costs.accounting import Accounting
from pruning.costs.memory import MemoryLoad
from pruning.costs.target import COST_NAMES, TIMED, Target, costs_of
from pruning.search.allocation import resized, size_of
from pruning.shape import UNITS, ModelShape
from tests.conftest import tiny_config


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_costs_are_sums_over_blocks(family: str) -> None:
    """What changing two blocks saves is what each of them saves alone."""
    load = MemoryLoad(100, 2, "float16")
    costs = costs_of(Accounting(tiny_config(family)), context_length=64, load=load)
    assert tuple(costs) == tuple(name for name in COST_NAMES if name not in TIMED)
    dense = ModelShape.parse("3x48*4")
    for name, cost in costs.items():
        assert cost.dense == cost.of(dense) > 0
        assert cost.ratio(dense) == 0
        alone, both = 0.0, dense
        for block, size in (((0, UNITS[0]), 1), ((1, UNITS[1]), 0), ((3, UNITS[0]), 0)):
            alone += cost.ratio(resized(dense, block, size))
            both = resized(both, block, size)
            assert size_of(both, block) == size
        assert cost.ratio(both) == pytest.approx(alone), name


def test_ratios_by_hand() -> None:
    accounting = Accounting(tiny_config("llama"))
    costs = costs_of(accounting, context_length=64)
    shape = ModelShape.parse("2x24 3x48*3")
    assert costs["kv_cache"].ratio(shape) == pytest.approx(1 / 12)
    assert costs["kv_cache"].to_json(shape) == {
        "dense": 12 * 2 * 8 * 2,
        "pruned": 11 * 2 * 8 * 2,
        "ratio": pytest.approx(1 / 12),
    }
    assert costs["parameters"].ratio(shape) == accounting.ratio(shape)
    flops = [
        accounting.flops_per_token(each, context_length=64) for each in (accounting.dense, shape)
    ]
    assert costs["flops"].ratio(shape) == (flops[0] - flops[1]) / flops[0]


def test_a_target_is_what_goes_or_what_is_left_at_most() -> None:
    memory = costs_of(
        Accounting(tiny_config("llama")), context_length=64, load=MemoryLoad(100, 2, "float16")
    )["memory"]
    assert Target("search.target.memory", memory, 0.25).most == 0.75 * memory.dense
    assert Target("search.target.memory", memory, "100 kB").most == 100_000


def test_costs_that_are_not_known_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    accounting = Accounting(GPT2Config(n_layer=2, n_embd=16, n_head=2))
    monkeypatch.setattr(accounting, "head_weights", None)
    assert set(costs_of(accounting, context_length=8)) == {"parameters", "kv_cache"}
