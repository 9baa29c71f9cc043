"""What the benchmark of latencies makes of times by hand. Real times are never asserted."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence

import pytest

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import latency
from experiments.benchmarks.latency import Compared, compared, judged, row, shapes_of
from pruning.costs.block_times import Levels, Stack, stacks_of
from pruning.costs.latency import PHASES, Phase
from pruning.costs.speed import SpeedSettings
from pruning.models.geometry import Geometry
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model

GEOMETRY = Geometry(4, 3, 2, 8, 48)
STACKS = stacks_of(GEOMETRY, Levels((0, 3), (0, 24, 48)))
SHAPE = ModelShape.parse("3x24*2 3x48*2")
NAMES = {SHAPE: "half"}


def table(slow: Sequence[float]) -> dict[Stack, dict[Phase, list[float]]]:
    """Rest 10, an attention 4, an MLP 1 for 8 channels; the round as a factor."""
    return {
        stack: {
            phase: [
                factor * (10 + stack.depth * (4 * (stack.layer.kv_heads > 0) + size / 8))
                for factor in slow
            ]
            for phase in PHASES
        }
        for stack in STACKS
        for size in [stack.layer.mlp_channels]
    }


def whole(prefill: Sequence[float]) -> Mapping[ModelShape, Mapping[Phase, Sequence[float]]]:
    return {SHAPE: {"prefill": prefill, "decode": [44.0] * len(prefill)}}


def test_the_error_is_by_hand() -> None:
    """10 + 4 x 4 + 2 x 3 + 2 x 6 = 44 are predicted."""
    prefill, decode = judged(table([1.0] * 3), whole([40.0, 40.0, 50.0]), NAMES)
    assert (prefill.shape, prefill.phase, prefill.seconds) == ("half", "prefill", 40.0)
    assert prefill.error == pytest.approx(0.1)
    assert (decode.phase, decode.error, decode.standard_error) == ("decode", 0.0, 0.0)
    assert row("tiny", prefill)[:5] == ("tiny", "half", "prefill", "40000.0 ms", "+10.0%")


def test_what_slows_table_and_model_in_the_same_rounds_is_no_noise() -> None:
    slow = [1.0, 3.0, 2.0, 1.0, 2.0, 3.0]
    prefill, decode = judged(table(slow), whole([44 * each for each in slow]), NAMES)
    assert prefill.error == pytest.approx(0, abs=1e-9)
    assert prefill.standard_error == pytest.approx(0, abs=1e-9)
    assert decode.standard_error > 0.1, "the table alone was slow"


def test_noise_of_the_model_and_of_the_table_counts() -> None:
    """Half of all draws of two rounds have both, a quarter has either twice."""
    prefill, _ = judged(table([1.0, 1.0]), whole([40.0, 44.0]), NAMES)
    spread = statistics.pstdev([44 / 40, 44 / 42, 44 / 42, 44 / 44])
    assert prefill.standard_error == pytest.approx(spread, rel=0.15)
    prefill, _ = judged(table([1.0, 1.1]), whole([44.0, 44.0]), NAMES)
    spread = statistics.pstdev([1.0, 1.05, 1.05, 1.1])
    assert prefill.standard_error == pytest.approx(spread, rel=0.15)


def test_shapes_have_layers_that_lost_what_they_can() -> None:
    shapes = shapes_of(ModelShape.dense(8, 3, 48))
    layers = [{(each.kv_heads, each.mlp_channels) for each in shape.layers} for shape in shapes]
    assert len(shapes) == 8
    assert any((0, 48) in each for each in layers)
    assert any((0, 0) in each for each in layers)
    assert list(shapes.values())[-1] == "3 x 48 / 3 x 48 / 3 x 48 / 0 x 0"


def test_every_shape_of_a_real_model_is_compared() -> None:
    found = compared(tiny_model(tiny_config("llama")), SpeedSettings(1, 4, 2, 2))
    assert len(found) == 16
    assert all(isinstance(each, Compared) and each.seconds > 0 for each in found)
    assert {each.phase for each in found} == set(PHASES)


def test_one_round_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "run", None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "latency", "--rounds", "1"])
    with pytest.raises(SystemExit) as ended:
        benchmarks.main()
    assert ended.value.code == 2
    assert "--rounds: 1; latency takes at least 2" in capsys.readouterr().err
