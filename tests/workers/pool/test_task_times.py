from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels
from pruning.costs.speed import SpeedSettings
from pruning.shape import Removal
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.pool.ray_pool import RayPool
from workers.pool.task_times import TaskTimeModel, work
from workers.prefix import PrefixKey, missing_layers
from workers.tasks import (
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
    for heads, seconds in ((1, 12.0), (4, 18.0)):
        times.observe(0, task(*[None] * heads), ScoreResult((), 1, seconds, 10), 99.0)
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


def test_a_whole_text_gets_as_long_as_a_slow_device_takes() -> None:
    """64k tokens on a busy core take more than ten minutes, and would be lost."""
    times = TaskTimeModel(10, slowest_text_s=5000.0)
    reading = (OrderTask("activation"), StatisticsTask((0,)))
    others = (OrderTask("l1"), InfluenceTask(0, "o"), task(None))
    for tasks, limit_s in ((reading, 5000.0), (others, 600.0)):
        assert [times.limit_s(0, each, num_failures=0) for each in tasks] == [limit_s] * len(tasks)


def test_what_a_slow_device_takes_for_a_whole_text(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """Two operations for each parameter and token of the longest set, on a tenth of a core each."""
    tokens = max(each.size for each in spec.token_sets.values())
    parameters = Accounting(spec.checkpoint.config()).num_dense_parameters
    for placement, threads, rate in (
        (Placement(0, num_gpus=0), 1, 3e9),
        (Placement(0, num_gpus=0), 2, 6e9),
        (Placement(0, num_gpus=1), 2, 1e12),
    ):
        with RayPool(replace(spec, num_threads=threads), placement) as pool:
            expected = 2 * parameters * tokens / rate
            assert pool.task_times.slowest_text_s == pytest.approx(expected)
