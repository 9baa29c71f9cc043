"""What a table of latencies says of a shape, against sums by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning.costs.latency import (
    PHASES,
    BlockTimes,
    LatencyTable,
    PhaseTimes,
    Seconds,
    latency_costs,
    warn_of_noise,
)
from pruning.errors import InputError
from pruning.shape import ModelShape
from tests.pruning.costs.tables import exact, table

TABLE = table(
    {0: (0, 1), 1: (3, 2), 3: (4, 6)},
    {0: (0, 0), 16: (10, 1), 32: (12, 1), 40: (9, 5), 48: (14, 5)},
)
DENSE = ModelShape.dense(2, 3, 48)


def test_a_shape_takes_the_rest_and_its_blocks() -> None:
    assert TABLE.nanoseconds(DENSE, "prefill") == (5 + 2 * (4 + 14)) * 10**6
    assert TABLE.nanoseconds(DENSE, "decode") == (7 + 2 * (6 + 5)) * 10**6
    assert TABLE.seconds(DENSE) == 0.041 + 0.029
    pruned = ModelShape.parse("1x16 0x40")
    assert TABLE.seconds(pruned, "prefill") == (5 + 3 + 10 + 0 + 9) / 1e3
    assert TABLE.seconds(pruned, "decode") == (7 + 2 + 1 + 1 + 5) / 1e3


def test_seconds_are_whole_nanoseconds() -> None:
    long = table({0: (0, 0), 3: (3e6, 0)}, {0: (0, 0), 48: (0, 0)}, rest=(0, 7e6))
    assert long.nanoseconds(DENSE, "prefill") == 6_000_000_000_000
    assert long.nanoseconds(DENSE, "decode") == 7_000_000_000_000


def test_between_two_measured_sizes_it_is_in_proportion() -> None:
    """A quarter of the way from 12 to 9; half of that from 3 to 4; from nothing to 10."""
    assert TABLE.block_nanoseconds("mlp_channels", 34, "prefill") == 11_250_000
    assert TABLE.block_nanoseconds("kv_heads", 2, "prefill") == 3_500_000
    assert TABLE.block_nanoseconds("kv_heads", 2, "decode") == 4_000_000
    assert TABLE.block_nanoseconds("mlp_channels", 4, "prefill") == 2_500_000


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("3x49 3x48", r"latency: MLP of 49 channels; the table has 0 to 48; measure one"),
        ("4x48 3x48", r"latency: attention of 4 KV heads; the table has 0 to 3; measure one"),
    ],
)
def test_outside_of_what_was_measured_nothing_is_said(shape: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TABLE.seconds(ModelShape.parse(shape))


def test_a_table_without_small_sizes_says_nothing_of_them() -> None:
    short = table({1: (1, 1), 3: (1, 1)}, {8: (1, 1), 48: (1, 1)})
    assert not short.reaches("kv_heads", 0)
    assert short.reaches("mlp_channels", 8)
    with pytest.raises(InputError, match=r"MLP of 7 channels; the table has 8 to 48"):
        short.block_nanoseconds("mlp_channels", 7, "decode")


def test_sizes_that_are_not_faster_than_the_next_larger_one_are_marked() -> None:
    """32 channels prefill slower than 40; 16 decode no faster than 32, and 40 no faster than 48."""
    assert TABLE.costs_speed("mlp_channels", "prefill") == {32}
    assert TABLE.costs_speed("mlp_channels", "decode") == {16, 40}
    assert TABLE.costs_speed("kv_heads", "prefill") == frozenset()
    marks = {each["size"]: each["costs_speed"] for each in TABLE.to_json()["mlp_channels"]}
    assert marks == {0: [], 16: ["decode"], 32: ["prefill"], 40: ["decode"], 48: []}


def test_costs_are_whole_nanoseconds_that_add_up_block_by_block() -> None:
    thirds = table({0: (0, 0), 3: (1 / 3, 1 / 7)}, {0: (0, 0), 48: (1 / 3, 1 / 9)})
    costs = latency_costs(thirds, DENSE)
    assert list(costs) == ["latency", "prefill", "decode"]
    smaller = ModelShape.parse("3x31 2x17")
    assert costs["latency"].of(smaller) == costs["prefill"].of(smaller) + costs["decode"].of(
        smaller
    )
    for cost in costs.values():
        saved = [
            cost.of(DENSE) - cost.of(ModelShape.parse(text))
            for text in ("3x31 3x48", "3x48 2x48", "3x48 3x17")
        ]
        assert cost.of(DENSE) - sum(saved) == cost.of(smaller)
        assert cost.dense == cost.of(DENSE)


@pytest.mark.parametrize("rest_ms", [5, 6])
def test_a_phase_in_which_the_dense_model_takes_no_time_is_no_cost(rest_ms: float) -> None:
    """Prefill: 5 + 2 x (1 - 4) = -1 ms, or 0."""
    noise = table({0: (0, 0), 3: (-4, 1)}, {0: (0, 0), 48: (1, 1)}, rest=(rest_ms, 7))
    assert list(latency_costs(noise, DENSE)) == ["latency", "decode"]


def test_a_nanosecond_is_a_cost() -> None:
    nothing = {0: (0.0, 0.0), 3: (0.0, 0.0)}, {0: (0.0, 0.0), 48: (0.0, 0.0)}
    costs = latency_costs(table(*nothing, rest=(0, 1e-6)), DENSE)
    assert {name: cost.dense for name, cost in costs.items()} == {"latency": 1, "decode": 1}


def test_the_error_of_a_ratio_is_that_of_all_medians_it_is_made_of() -> None:
    """The dense model takes 4 + 2 x (1 + 2) = 10 seconds, the other one 4 + 2 + 1 + 1 = 8. What
    both have cancels out: an error of the rest counts 1 - 0.8 times, of a whole attention
    1 - 2 x 0.8, of a whole MLP 1.5 - 2 x 0.8, of no attention once, and of no MLP half.
    """

    def times(median: float, error: float | None) -> PhaseTimes:
        return PhaseTimes(*[Seconds(median, median, median, error)] * 2)

    blocks = BlockTimes(
        times(4, 0.5), {0: times(0, 0.3), 3: times(1, 0.5)}, {0: times(0, 0.2), 48: times(2, 1)}
    )
    known = replace(TABLE, times=blocks)
    shape = ModelShape.parse("0x48 3x24")
    errors = (0.2 * 0.5, 0.3, 0.6 * 0.5, 0.1, 0.5 * 0.2)
    for phase in PHASES:
        assert known.ratio_error(shape, DENSE, phase) == pytest.approx(
            math.hypot(*errors) / 10, rel=1e-12
        )
        assert known.ratio_error(DENSE, DENSE, phase) == 0
    unknown = replace(TABLE, times=replace(blocks, rest=times(4, None)))
    assert unknown.ratio_error(shape, DENSE, "prefill") is None


@pytest.mark.parametrize(
    ("error_ms", "whole_ms", "noise", "said"),
    [
        (0.0, 10.0, 0.0, ""),
        (0.6, 10.0, 0.06, ""),
        (62.5, 1000.0, 0.0625, ""),
        (0.7, 10.0, 0.07, "the standard error of the medians is 7% of a whole block's time, so"),
        (0.0, 0.0, math.inf, "of the medians is more than a whole block takes, so"),
        (0.0, -1.0, math.inf, "of the medians is more than a whole block takes, so"),
        (None, 10.0, None, "rounds are 3, too few to tell what is noise; measure again with at"),
    ],
)
def test_medians_that_are_hardly_known_are_said(
    caplog: pytest.LogCaptureFixture, error_ms: float | None, whole_ms: float,
    noise: float | None, said: str,
) -> None:  # fmt: skip
    """Of the worse phase, over all sizes but 0."""
    error = None if error_ms is None else error_ms / 1e3
    whole = Seconds(whole_ms / 1e3, whole_ms / 1e3, 9, error)
    quiet, gone = Seconds(0.02, 0.02, 0.02, 0), Seconds(0, 0, 9, 9)
    blocks = {0: PhaseTimes(gone, gone), 2: PhaseTimes(quiet, whole), 3: PhaseTimes(quiet, whole)}
    found = replace(TABLE, times=BlockTimes(TABLE.times.rest, blocks, blocks))
    assert found.noise == pytest.approx(noise)
    warn_of_noise(found)
    assert len(caplog.messages) == bool(said)
    assert not said or said in caplog.messages[0]


def simulated(num_rounds: int) -> LatencyTable:
    """Rounds of one noise, a tenth of a whole block's 10 ms, and of a machine that drifts."""
    draw = random.Random(num_rounds)
    slow = [draw.choice((1.0, 2.0)) for _ in range(num_rounds)]
    speeds = [each / statistics.median(slow) for each in slow]

    def seconds(ms: float) -> PhaseTimes:
        rounds = [speed * draw.gauss(ms, 1.0) / 1e3 for speed in speeds]
        return PhaseTimes(*[Seconds.of_rounds(rounds, speeds)] * 2)

    blocks = {0: seconds(0.0), **{size: seconds(10.0 * size / 8) for size in range(1, 9)}}
    return replace(TABLE, times=BlockTimes(seconds(5.0), blocks, blocks))


def test_more_rounds_of_the_same_noise_are_less_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a median of normal rounds: 1.25 of the noise, by the root of their number."""
    warn_of_noise(simulated(4))
    assert [message[:32] for message in caplog.messages] == ["latency: the standard error of t"]
    caplog.clear()
    many = simulated(64)
    warn_of_noise(many)
    assert caplog.messages == []
    assert many.noise == pytest.approx(1.2533 * 0.1 / 8, rel=0.2)


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_too_few_rounds_say_nothing_of_noise(num_rounds: int) -> None:
    assert Seconds.of_rounds([1.0, 2.0][:num_rounds], [1.0] * num_rounds).standard_error is None
    assert simulated(num_rounds).noise is None


def test_three_rounds_say_what_is_noise() -> None:
    assert Seconds.of_rounds([1.0, 2.0, 1.5], [1.0] * 3).standard_error == pytest.approx(
        1.2533 / 1.349 * 1.0 / math.sqrt(3), rel=1e-3
    )
    assert simulated(3).noise is not None


def test_a_slow_round_in_which_all_is_slow_is_no_error() -> None:
    found = Seconds.of_rounds([2.0, 6.0, 2.0, 4.0], [1.0, 3.0, 1.0, 2.0])
    assert found == Seconds(3.0, 2.0, 6.0, 0.0)
    assert Seconds.of_rounds([2.0, 6.0, 2.0, 4.0], [1.0] * 4).standard_error == pytest.approx(
        1.2533 / 1.349 * 3.5 / 2, rel=1e-3
    )


def test_a_file_says_what_the_table_said(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    TABLE.save(path)
    again = LatencyTable.load(path)
    assert again == TABLE
    assert again.times.rest.decode == Seconds(0.007, 0.007, 0.007, 0)
    before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == before
    few = replace(TABLE, times=simulated(2).times)
    few.save(path)
    assert LatencyTable.load(path) == few, "no standard errors"
    wholes = {shape: exact(20, 30) for shape in ("3x48*2", "3x48 0x16")}
    other = replace(TABLE, engine="llama.cpp", whole_models=wholes)
    other.save(path)
    assert LatencyTable.load(path) == other
    assert "llama.cpp" in other.title
    assert "transformers" not in TABLE.title


def test_a_file_of_an_earlier_version_is_of_transformers(tmp_path: Path) -> None:
    data = TABLE.to_json()
    del data["engine"], data["whole_models"]
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(data))
    assert LatencyTable.load(path) == TABLE
    assert TABLE.engine == "transformers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "other"}, "engine is 'other', which is not known"),
        ({"whole_models": [{"shape": "none"}]}, "not a shape: 'none'"),
    ],
)
def test_a_file_of_an_engine_that_is_damaged(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(TABLE.to_json() | changes))
    with pytest.raises((ValueError, InputError), match=message):
        LatencyTable.load(path)


def test_the_error_of_a_whole_model_is_predicted_less_measured() -> None:
    shape = ModelShape.dense(2, 3, 48)
    predicted = TABLE.seconds(shape, "decode")
    measured = exact(99, 1e3 * predicted / 2)
    found = replace(TABLE, whole_models={shape.text: measured})
    assert found.error(shape, "decode") == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("rest"), "rest"),
        (lambda data: data.update(kv_heads=[]), "kv_heads has no size"),
        (lambda data: data["mlp_channels"][0].update(size="16"), "no whole number"),
        (lambda data: data["mlp_channels"][0].update(size=True), "no whole number"),
        (lambda data: data["rest"]["decode"].update(median=float("nan")), "three finite numbers"),
        (lambda data: data["rest"]["decode"].update(highest="1"), "three finite numbers"),
        (lambda data: data["rest"]["decode"].pop("lowest"), "lowest"),
        (lambda data: data["rest"]["decode"].pop("standard_error"), "standard_error"),
        (lambda data: data["rest"]["decode"].update(standard_error=-1), "is -1, which no"),
        (lambda data: data["rest"]["decode"].update(standard_error="1"), "is 1, which no"),
        (lambda data: data["rest"]["decode"].update(standard_error=math.inf), "is inf, which no"),
        (lambda data: data["settings"].update(rounds=0), "^rounds: 0; expected at least 1"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    data = TABLE.to_json()
    change(data)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(data))
    with pytest.raises((InputError, KeyError, TypeError, ValueError), match=message):
        LatencyTable.load(path)


def test_a_file_of_something_else_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text("[]")
    with pytest.raises(TypeError, match="^it is no table of latencies$"):
        LatencyTable.load(path)
