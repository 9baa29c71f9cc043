from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pruning.costs.block_times import Levels
from pruning.costs.speed import SpeedSettings
from pruning.shape import Removal
from workers.cluster.placement import Placement
from workers.pool.task_times import TaskTimeModel, slowest_text_s, work
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import (
    AnswerResult,
    Candidate,
    EvaluatorSpec,
    InfluenceTask,
    LatencyTask,
    OrderTask,
    ScoreResult,
    ScoreTask,
    StatisticsTask,
)


def task(*candidates: Candidate) -> ScoreTask:
    return ScoreTask("block", 0, "base", candidates, "o")


def test_layers_and_heads_that_a_task_runs() -> None:
    """Of 8 layers a candidate in layer 5 runs 3; the base runs the head alone."""
    candidates = (Removal("mlp", 5, 0), Removal("attention", 7, 0), None)
    assert work(task(*candidates), 8) == (3 + 1, 3)


@pytest.mark.parametrize(
    ("held", "layers"),
    [
        (None, 8),
        (("block", 0, "2x64*8"), 0),
        (("block", 0, "2x64*5 2x32*3"), 3),
        (("block", 0, "1x64 2x64*7"), 8),
        (("block", 1, "2x64*8"), 8),
        (("width", 0, "2x64*8"), 8),
    ],
)
def test_layers_of_a_prefix_that_are_missing(held: PrefixKey | None, layers: int) -> None:
    """From the first on in which the bases differ, if they are of the same text."""
    asked = ScoreTask("block", 0, "2x64*8", (None,), "o")
    assert missing_layers(asked.prefix_key, held, 8) == layers
    times = TaskTimeModel(8)
    assert times.task_s(asked, held) == layers + 1


def test_nothing_is_expected_of_a_measurement_of_latencies() -> None:
    """And is not handed to a second evaluator, which would slow the first one down."""
    measurement = LatencyTask(SpeedSettings(1, 8, 8, 2), Levels((0, 3), (0, 48)))
    times = TaskTimeModel(10)
    assert times.limit_s(0, measurement, num_failures=0) == math.inf
    assert times.patience_s(measurement) == math.inf


def test_seconds_of_a_layer_and_a_head_from_two_tasks() -> None:
    """10 layers and 1 head in 12 s, 10 layers and 4 heads in 18 s: 1 s a layer, 2 s a head."""
    times = TaskTimeModel(10)
    assert not times.knows(task(None))
    for heads, seconds in ((1, 12.0), (4, 18.0)):
        times.observe(0, task(*[None] * heads), ScoreResult((), 1, seconds, 10), 99.0)
    assert times.knows(task(None))
    assert times.work_s(1, 0) == pytest.approx(1)
    assert times.work_s(0, 1) == pytest.approx(2)
    assert times.task_s(task(Removal("mlp", 6, 0))) == pytest.approx(10 + 4 + 2)
    assert times.prefix_s() == pytest.approx(10)


def test_seconds_of_a_whole_task_grow_with_its_size() -> None:
    times = TaskTimeModel(10)
    assert times.task_s(StatisticsTask((0,))) == 0
    times.observe(0, StatisticsTask((0, 1, 2)), None, 6.0)
    assert times.task_s(StatisticsTask(tuple(range(10)))) == pytest.approx(20)
    assert times.task_s(StatisticsTask((0,))) == pytest.approx(2)
    times.observe(1, StatisticsTask((0,)), None, 8.0)
    assert times.straggler_factor(0) == 1
    assert times.straggler_factor(1) > 1.5, "it took four times as long"


def test_what_was_seen_before_fades_by_a_fiftieth_with_each_task() -> None:
    times = TaskTimeModel(10)
    for size, seconds in ((3, 6.0), (1, 8.0), (2, 1.0)):
        times.observe(0, StatisticsTask(tuple(range(size))), None, seconds)
    seen_s, seen = (6.0 * 0.98 + 8.0) * 0.98 + 1.0, (3 * 0.98 + 1) * 0.98 + 2
    assert times.task_s(StatisticsTask((0,))) == pytest.approx(seen_s / seen)


@pytest.mark.parametrize(
    ("seconds", "factor"), [(1.0, 0.7 + 0.3 / 2), (8.0, 0.7 + 0.3 * 4), (99.0, 0.7 + 0.3 * 4)]
)
def test_a_straggler_factor_moves_by_three_tenths_and_never_by_more_than_fourfold(
    seconds: float, factor: float
) -> None:
    """Of a task that takes 2 s on an average evaluator."""
    times = TaskTimeModel(10, _sizes={"statistics": (2.0, 1.0)})
    times.observe(5, StatisticsTask((0,)), AnswerResult((), seconds), 1000.0)
    assert times.straggler_factor(5) == pytest.approx(factor)
    expected_s = times.task_s(StatisticsTask((0,))) * factor
    assert times.expected_s(5, StatisticsTask((0,))) == pytest.approx(expected_s)


def test_what_takes_less_than_a_second_tells_evaluators_apart_too() -> None:
    times = TaskTimeModel(10, measured=True, _layer_s=0.0, _head_s=0.5, _straggler_factors={4: 2.0})
    times.observe(4, task(None), ScoreResult((), 1, 2.0), 99.0)
    assert times.straggler_factor(4) == pytest.approx(0.7 * 2 + 0.3 * 4)


def test_straggler_factors_come_closer_to_1_by_a_tenth_with_each_step() -> None:
    times = TaskTimeModel(10, _straggler_factors={0: 3.0, 1: 0.5})
    times.decay()
    assert [times.straggler_factor(number) for number in (0, 1)] == [2.8, 0.55]
    times.decay()
    assert times.straggler_factor(0) == pytest.approx(2.62)


def test_one_that_was_never_seen_is_an_average_evaluator() -> None:
    assert TaskTimeModel(10).straggler_factor(3) == 1


@pytest.mark.parametrize(
    ("longest_start_s", "known_s", "limit_s", "patience_s"),
    [
        (0.0, None, 600.0, 60.0),
        (11.9, None, 600.0, 60.0),
        (60.0, None, 1200.0, 300.0),
        (60.0, 1.0, 60.0, 300.0),
        (0.0, 2.5, 75.0, 60.0),
    ],
)
def test_how_long_is_too_long(
    longest_start_s: float, known_s: float | None, limit_s: float, patience_s: float
) -> None:
    """Thirty times what it should take, a minute at least; of what nobody knows twenty times the
    slowest start, ten minutes at least, four times as long for each evaluator that was given up
    over it. A second one helps after five starts, a minute at least.
    """
    times = TaskTimeModel(10, _sizes={"statistics": (known_s, 1.0)} if known_s else {})
    times.observe_start(longest_start_s)
    times.observe_start(longest_start_s / 2)
    assert times.limit_s(0, StatisticsTask((0,)), num_failures=0) == limit_s
    fourfold = 1 if known_s else 4 * 4
    assert times.limit_s(0, StatisticsTask((0,)), num_failures=2) == limit_s * fourfold
    assert times.patience_s(StatisticsTask((0,))) == patience_s


def test_equal_tasks_still_give_a_usable_cost() -> None:
    times, one = TaskTimeModel(32), task(Removal("attention", 0, 0))
    for _ in range(5):
        times.observe(0, one, ScoreResult((), 1, 6.5, 32), 7.0)
    assert times.task_s(one) == pytest.approx(6.5)


def test_of_tasks_that_are_all_alike_layers_and_heads_cost_the_same() -> None:
    """However often they came: what sums that fade out leave is rounding, which says nothing."""
    times = TaskTimeModel(32)
    step = task(*(Removal("mlp", layer, 0) for layer in range(32)), *[None] * 33)
    for number in range(60):
        times.observe(0, step, ScoreResult((), 1, 6.0 + number % 3, 32), 99.0)
        assert times.work_s(1, 0) == times.work_s(0, 1) > 0


def test_a_head_may_cost_nothing() -> None:
    """As of a small vocabulary: 4 layers in 4 s, 1 layer in 1 s."""
    times = TaskTimeModel(10)
    for layer, seconds in ((6, 4.0), (9, 1.0)):
        times.observe(0, task(Removal("mlp", layer, 0)), ScoreResult((), 1, seconds), 99.0)
    assert times.work_s(1, 0) == pytest.approx(1)
    assert times.work_s(0, 1) == 0


@pytest.mark.parametrize(
    "tasks",
    [
        [(0, 2, 6.0)],
        [(0, 1, 2.0), (3, 1, 2.0)],
        [(1, 1, 9.0), (3, 1, 3.0)],
        [(4, 1, 6.0), (4, 3, 2.0)],
    ],
    ids=["heads alone", "layers for nothing", "less for more layers", "less for more heads"],
)
def test_layers_and_heads_cost_the_same_where_tasks_do_not_tell_them_apart(
    tasks: list[tuple[int, int, float]],
) -> None:
    """Layers and heads of each task, and its seconds: least squares with one unknown."""
    times = TaskTimeModel(10)
    for layers, heads, seconds in tasks:
        times.observe(0, task(*[None] * heads), ScoreResult((), 1, seconds, layers), 99.0)
    weights = 0.98 ** np.arange(len(tasks))[::-1]
    counts = np.array([layers + heads for layers, heads, _ in tasks])
    spent = np.array([seconds for _, _, seconds in tasks])
    expected = (weights * counts * spent).sum() / (weights * counts**2).sum()
    assert times.work_s(1, 0) == times.work_s(0, 1) == pytest.approx(expected)


def test_a_whole_text_gets_as_long_as_a_slow_device_takes() -> None:
    """64k tokens on a busy core take more than ten minutes, and would be lost."""
    times = TaskTimeModel(10, slowest_text_s=5000.0)
    reading = (OrderTask("activation"), StatisticsTask((0,)))
    others = (OrderTask("l1"), InfluenceTask(0, "o"), task(None))
    for tasks, limit_s in ((reading, 5000.0), (others, 600.0)):
        assert [times.limit_s(0, each, num_failures=0) for each in tasks] == [limit_s] * len(tasks)
    assert [times.slowest_s(each) for each in others] == [0.0] * len(others)
    assert TaskTimeModel(10).slowest_s(reading[0]) == 0.0, "nobody knows"


@pytest.mark.parametrize(
    ("num_gpus", "num_threads", "rate"), [(0, 1, 3e9), (0, 2, 6e9), (1, 2, 1e12)]
)
def test_a_tenth_of_each_core_or_of_a_small_gpu_is_slow(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, num_threads: int, rate: float
) -> None:
    """Of a model that brings its own code, which is read where that is allowed."""

    def accounting(config: str, *, trust_remote_code: bool) -> SimpleNamespace:
        assert (config, trust_remote_code) == ("its own", True)
        return SimpleNamespace(num_dense_parameters=500)

    monkeypatch.setattr("workers.pool.task_times.Accounting", accounting)
    checkpoint = SimpleNamespace(config=lambda: "its own", trust_remote_code=True)
    sets = {name: np.zeros((rows, 10), dtype=np.int64) for name, rows in (("a", 4), ("b", 7))}
    spec = EvaluatorSpec(checkpoint, "float32", sets, 2, num_threads)  # type: ignore[arg-type]
    placement = Placement(0, num_gpus=num_gpus)
    assert slowest_text_s(spec, placement) == pytest.approx(2 * 500 * 70 / rate)
    assert slowest_text_s(replace(spec, token_sets={}), placement) == 0
