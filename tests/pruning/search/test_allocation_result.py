"""What an allocation says of its blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pruning.costs.accounting import Accounting
from pruning.search.allocation_result import Allocation
from pruning.shape import ModelShape
from tests.conftest import tiny_config


def change(layer: int, unit: str, size: int, kl: float | None) -> dict[str, object]:
    return {"layer": layer, "unit": unit, "size": size, "kl": kl}


def test_prices_are_of_the_smallest_step_down_in_the_last_round() -> None:
    """Of 48 hidden and 48 MLP channels with biases, 8 channels are 8 x (3 x 48 + 2) parameters."""
    accounting = Accounting(tiny_config("llama"))
    shape = ModelShape.parse("3x40 3x32 2x40 3x40")
    first = {"base": "3x48*4", "changes": [change(3, "mlp_channels", 40, 9.0)]}
    last = {
        "base": "3x40*4",
        "changes": [
            change(0, "mlp_channels", 40, 0.0),
            change(0, "mlp_channels", 48, -0.5),
            change(1, "mlp_channels", 24, 0.7),
            change(1, "mlp_channels", 32, 0.2),
            change(2, "kv_heads", 2, None),
        ],
    }
    allocation = Allocation(shape, shape, 1.0, 0.5, 7, (first, last))
    percent = 100 * 8 * (3 * 48 + 2) / accounting.num_dense_parameters
    assert allocation.prices(accounting) == {(1, "mlp_channels"): pytest.approx(0.2 / percent)}


def test_a_file_says_what_the_allocation_says(tmp_path: Path) -> None:
    shape, start = ModelShape.parse("3x40 3x32 2x40 3x40"), ModelShape.parse("3x40*4")
    rounds = ({"base": "3x40*4", "changes": [change(0, "kv_heads", 2, None)], "solutions": []},)
    allocation = Allocation(start, shape, 1.0, 0.5, 7, rounds)
    for each in (allocation, replace(allocation, deviating={"halved batch": 2})):
        each.save(tmp_path / "allocation.json")
        assert Allocation.load(tmp_path / "allocation.json") == each
