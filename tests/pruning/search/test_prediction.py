"""What a table says of a shape, and whether it says it of a shape like those that were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.target import costs_of
from pruning.search.allocation import Solution, size_of
from pruning.search.prediction import MeasuredRound, predict
from pruning.shape import ModelShape
from tests.conftest import tiny_config

COSTS = costs_of(Accounting(tiny_config("llama")), context_length=32)
ROUND = {
    "base": "3x32*4",
    "base_kl": 0.5,
    "changes": [
        {"layer": 0, "unit": "mlp_channels", "size": 32, "kl": 0.0},
        {"layer": 0, "unit": "mlp_channels", "size": 16, "kl": 0.125},
        {"layer": 1, "unit": "mlp_channels", "size": 32, "kl": 0.0},
        {"layer": 1, "unit": "mlp_channels", "size": 40, "kl": -0.0625},
        {"layer": 2, "unit": "mlp_channels", "size": 0, "kl": None},
        {"layer": 3, "unit": "kv_heads", "size": 2, "kl": 0.25},
    ],
    "solutions": [
        {"shape": "3x16 3x40 3x32*2", "predicted_kl": 0.0625, "kl": 0.125},
        {"shape": "3x8 3x48 3x32*2", "predicted_kl": 0.5, "kl": None},
    ],
}


@pytest.fixture
def found() -> MeasuredRound:
    return MeasuredRound.of(2, ROUND)


def test_a_round_is_read_back(found: MeasuredRound) -> None:
    assert found.number == 2
    assert found.table.base == ModelShape.parse("3x32*4")
    assert size_of(found.table.base, (1, "mlp_channels")) == 32
    assert found.table.changes[0, "mlp_channels"] == {32: 0.0, 16: 0.125}
    assert {shape.text: score for shape, score in found.measured.items()} == {
        "3x32*4": 0.5,
        "3x16 3x32*3": 0.625,
        "3x32 3x40 3x32*2": 0.4375,
        "3x32*3 2x32": 0.75,
        "3x16 3x40 3x32*2": 0.625,
    }


@pytest.mark.parametrize(
    ("shape", "change", "kind", "reasons"),
    [
        ("3x16 3x40 3x32*2", 0.0625, "measured", []),
        ("3x32 3x40 3x32 2x32", 0.1875, "interpolation", []),
        ("3x32 3x40 3x32 2x32", -0.5, "interpolation", []),
        ("3x32*2 3x24 3x32", 0.1, "interpolation", []),
        ("3x16 3x32*2 2x32", 0.375, "extrapolation", ["parameters", "flops"]),
        ("3x16 3x40 3x32 2x32", 0.3125, "extrapolation", ["3 blocks changed together"]),
        ("3x32 3x40 3x32 3x40", -0.1, "extrapolation", ["parameters", "flops"]),
        ("3x32*3 2x32", -0.75, "measured", []),
        ("3x32 3x40 3x32 2x32", -0.75, "extrapolation", ["the sum is below 0"]),
    ],
)
def test_what_was_not_measured_like_it_is_an_extrapolation(
    found: MeasuredRound, shape: str, change: float, kind: str, reasons: list[str]
) -> None:
    solution = Solution(ModelShape.parse(shape), change)
    prediction = predict(found, solution, COSTS.values())
    assert prediction.kind == kind
    assert prediction.score == 0.5 + change
    if kind != "measured":
        said = [each.removeprefix("ratio of ") for each in prediction.reasons]
        starts = [
            next((reason for reason in reasons if each.startswith(reason)), each) for each in said
        ]
        assert [each for each in starts if each in reasons] == reasons
        assert kind == "extrapolation" or not prediction.reasons


def test_distance_and_range_are_in_ratios_of_each_cost(found: MeasuredRound) -> None:
    shape = ModelShape.parse("2x32 3x32*3")
    prediction = predict(found, Solution(shape, 0.25), COSTS.values())
    assert prediction.distance["kv_cache"] == pytest.approx(1 / 12)
    parameters = COSTS["parameters"]
    lost = parameters.of(found.table.base) - parameters.of(shape)
    assert prediction.distance["parameters"] == pytest.approx(lost / parameters.dense)
    assert prediction.measured_range["kv_cache"] == (0, pytest.approx(1 / 12))
    assert prediction.num_changed == 1


def test_errors_are_those_of_solutions_that_were_measured(found: MeasuredRound) -> None:
    prediction = predict(found, Solution(found.table.base, 0.0), COSTS.values())
    assert prediction.errors == (0.0625,)
    assert prediction.measured == 0.5


def test_what_was_measured_beside_a_round_is_known(found: MeasuredRound) -> None:
    """It widens the range that was measured, too."""
    uniform = ModelShape.parse("1x24*4")
    beside = replace(found, others={uniform: 0.75})
    assert beside.measured == found.measured | {uniform: 0.75}
    prediction = predict(beside, Solution(uniform, 0.5), COSTS.values())
    assert (prediction.kind, prediction.measured) == ("measured", 0.75)
    assert prediction.measured_range["kv_cache"] == (0, pytest.approx(8 / 12))
