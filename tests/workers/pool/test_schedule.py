"""The schedule in virtual time: a cluster whose clock is a heap."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from pruning.costs.speed import SpeedSettings
from pruning.shape import Removal
from tests.workers.pool.virtual_cluster import (
    BLOCK,
    HEAD_S,
    LAYER_S,
    LAYERS,
    WIDTH,
    Simulation,
    base,
    step,
    whole_search,
)
from workers.pool.running import Running
from workers.pool.schedule import MAX_TASK_S, Schedule
from workers.pool.task_times import TaskTimeModel
from workers.tasks import (
    Candidate,
    InfluenceTask,
    OrderTask,
    ScoreResult,
    ScoreTask,
    SpeedTask,
    StatisticsTask,
)


@pytest.mark.parametrize(("num_evaluators", "share"), [(1, 0.98), (8, 0.96), (64, 0.92)])
def test_evaluators_stay_busy(num_evaluators: int, share: float) -> None:
    simulation = Simulation(num_evaluators)
    seconds = whole_search(simulation)
    assert simulation.busy_s / (seconds * num_evaluators) > share


def test_more_evaluators_are_faster_as_far_as_prefixes_allow() -> None:
    seconds = [whole_search(Simulation(count)) for count in (1, 8, 64)]
    assert seconds[0] / seconds[1] > 7.5
    assert seconds[0] / seconds[2] > 35


def test_tasks_are_long_enough_for_a_driver_that_hands_out_one_after_another() -> None:
    """A table of 157 sizes on 256 batches, and 2.3 ms for each task. Without `HANDOUT_S` the
    evaluators are at work for less than half of that time.
    """
    simulation = Simulation(1024, handout_s=0.0023)
    table = tuple(
        Removal("mlp_channels", layer, size) for size in range(5) for layer in range(LAYERS)
    )
    seconds = simulation.run(step(table[:157], num_batches=256))
    assert simulation.useful_s / (seconds * 1024) > 0.45


def test_the_prefix_of_the_step_before_is_kept() -> None:
    """Bases of two steps differ in one layer; above it are half of all layers on average. The first
    steps are those of an evaluator for each batch, which keeps it.
    """
    simulation, run = Simulation(8), list[int]()
    for number in range(40):
        simulation.run(step(WIDTH, base=base(number)))
        run.append(simulation.num_prefix_layers)
    assert run[0] >= 8 * LAYERS
    assert (run[-1] - run[0]) / 39 < 0.6 * 8 * LAYERS


def test_whole_shapes_go_to_who_holds_most_of_their_layers() -> None:
    """A path of shapes, each of its own base: an evaluator goes up it, whatever the order in which
    they are asked for.
    """
    tasks = [ScoreTask("block", 0, base(number), (None,), "o") for number in (3, 1, 2, 0)]
    schedule, held = Schedule(tasks, TaskTimeModel(LAYERS)), ("block", 0, base(0))
    taken = []
    while (running := schedule.next(0, 1, held, 0.0)) is not None:
        assert isinstance(running.task, ScoreTask)
        assert schedule.done(0, running, ScoreResult((), 1, 1.0), 1.0)
        held = running.task.prefix_key
        taken.append(held[2])
    # 0 differs from 1 in layer 0; 1 from 2 in layer 13; 2 from 3 in layer 26
    assert taken == [base(number) for number in (0, 3, 2, 1)]


def test_a_slow_evaluator_does_not_hold_the_step_up() -> None:
    even, slow = Simulation(8), Simulation(8, straggler_factors={3: 10.0})
    assert whole_search(slow) < 1.4 * whole_search(even)


def test_a_stuck_evaluator_costs_its_share_only() -> None:
    simulation = Simulation(8)
    whole_search(simulation, 1, 1)
    simulation.stuck = {2}
    before = simulation.now
    whole_search(simulation)
    assert simulation.now - before < 1.5 * whole_search(Simulation(8))


def test_an_evaluator_that_was_slow_once_gets_work_again() -> None:
    """It met a machine that was busy for a moment; steps of one batch leave it little chance to
    show that it is over.
    """
    simulation = Simulation(2)

    def seconds(number: int) -> float:
        return simulation.run(step(WIDTH, 1, base=base(number)))

    usual = [seconds(number) for number in range(5)][-1]
    simulation.straggler_factors = {1: 30.0}
    seconds(5)
    simulation.straggler_factors = {}
    assert [seconds(number) for number in range(6, 40)][-1] < 1.1 * usual


def test_without_a_stuck_evaluator_hardly_anything_is_done_twice() -> None:
    simulation = Simulation(16)
    whole_search(simulation)
    assert sum(simulation.answered.values()) == 8 * LAYERS
    useful = (
        8
        * (
            sum(LAYERS - candidate.layer for number in range(4) for candidate in BLOCK[number:])
            + 8 * sum(range(1, LAYERS + 1))
        )
        * LAYER_S
    )
    useful += 8 * (sum(len(BLOCK) - number for number in range(4)) + 8 * LAYERS) * HEAD_S
    assert simulation.useful_s < 1.02 * useful


def test_no_task_is_long_once_costs_are_known() -> None:
    simulation = Simulation(1)
    simulation.straggler_factors = {0: 50.0}
    whole_search(simulation, 2, 2)
    simulation.longest_s = 0.0
    whole_search(simulation, 2, 2)
    assert MAX_TASK_S < simulation.longest_s < MAX_TASK_S + 2 * 50 * LAYERS * LAYER_S


def learnt(simulation: Simulation) -> TaskTimeModel:
    """What a step has shown."""
    whole_search(simulation, 1, 0)
    return simulation.task_times


def drain(schedule: Schedule) -> list[Running]:
    """All that there is, for an evaluator that has the prefix."""
    taken = []
    while (running := schedule.next(0, 4, ("block", 0, "base"), 0.0)) is not None:
        taken.append(running)
    return taken


def candidates(running: Running) -> list[Candidate]:
    assert isinstance(running.task, ScoreTask)
    return list(running.task.candidates)


def test_two_tasks_for_one_batch_are_refused() -> None:
    """Whichever came first would never be answered: NLL and KL of one batch are two runs."""
    nll = ScoreTask("block", 0, "base", BLOCK[:2], "o")
    with pytest.raises(ValueError, match="two tasks for .*'block', 0, 'base'"):
        Schedule([nll, replace(nll, kind="kl")], TaskTimeModel(LAYERS))


def test_a_task_that_fails_is_handed_out_again() -> None:
    schedule = Schedule(step(BLOCK, 1), TaskTimeModel(LAYERS))
    [first, *rest] = drain(schedule)
    assert schedule.failed(0, first) == 1
    again = drain(schedule)
    assert [one for running in again for one in candidates(running)] == candidates(first)
    for running in again + rest:
        assert schedule.done(0, running, None, 100.0)
    assert schedule.finished


def test_after_two_failures_candidates_are_told_apart() -> None:
    """Only the one that kills its evaluator reaches the third failure."""
    schedule = Schedule(step(BLOCK[:6], 1), TaskTimeModel(LAYERS))
    poison, worst = BLOCK[1], 0
    for _ in range(20):
        running = schedule.next(0, 1, None, 0.0)
        if running is None:
            break
        assert isinstance(running.task, ScoreTask)
        if poison in running.task.candidates:
            worst = schedule.failed(0, running)
            if worst == 3:
                assert running.task.candidates == (poison,)
                return
        else:
            schedule.done(0, running, None, 100.0)
    pytest.fail(f"the poison candidate failed {worst} times")


@pytest.mark.parametrize("lost", [{}, {"error": False}], ids=["unsaid", "said"])
def test_a_lost_evaluator_and_an_exception_are_counted_apart(lost: dict[str, bool]) -> None:
    """One of each on the same candidate makes neither twice."""
    schedule = Schedule(step(BLOCK[:1], 1), TaskTimeModel(LAYERS))
    for given, count in ((lost, 1), ({"error": True}, 1), (lost, 2), ({"error": True}, 2)):
        running = schedule.next(0, 1, None, 0.0)
        assert running is not None
        assert schedule.failed(0, running, **given) == count


def test_a_slow_evaluator_without_the_prefix_leaves_the_end_to_others() -> None:
    """Twenty candidates of 32 ms are left for two. It needs 0.1 s for one, and 1.2 s with the
    prefix, which the other does not need.
    """
    task_times = learnt(Simulation(2))
    task_times._straggler_factors = {0: 1.0, 1: 3.0}
    last = tuple(Removal("mlp_channels", LAYERS - 1, size) for size in range(40))
    schedule, held = Schedule(step(last, 1), task_times), ("block", 0, "base")
    assert schedule.next(0, 2, held, 0.0) is not None
    assert schedule.next(1, 2, None, 0.0) is None
    assert schedule.next(1, 2, held, 0.0) is not None


def test_a_task_that_is_on_time_is_not_run_twice_whatever_the_clock_says() -> None:
    schedule = Schedule(step(WIDTH[:1], 1), learnt(Simulation(2)))
    first = schedule.next(0, 2, None, 1e5)
    assert first is not None
    assert schedule.next(1, 2, None, 1e5 + 0.1) is None
    assert schedule.next(1, 2, None, 1e5 + 60) is first


def test_a_machine_that_goes_blames_no_candidate() -> None:
    schedule = Schedule(step(BLOCK, 1), TaskTimeModel(LAYERS))
    for _ in range(10):
        running = schedule.next(0, 1, None, 0.0)
        assert running is not None
        assert schedule.failed(0, running, blame=False) == 0


def test_the_first_of_two_answers_counts() -> None:
    schedule = Schedule(step(WIDTH[:1], 1), learnt(Simulation(2)))
    first = schedule.next(0, 2, None, 0.0)
    assert first is not None
    assert schedule.next(1, 2, None, 0.1) is None, "nothing is late yet"
    assert schedule.next(1, 2, None, 60.0) is first
    assert schedule.next(1, 2, None, 90.0) is None, "two are enough"
    assert schedule.done(1, first, None, 100.0)
    assert schedule.finished
    assert not schedule.done(0, first, None, 100.0)
    assert schedule.failed(0, first) == 0


def test_one_of_two_holders_lost_is_no_loss() -> None:
    schedule = Schedule(step(WIDTH[:1], 1), learnt(Simulation(2)))
    first = schedule.next(0, 2, None, 0.0)
    assert first is not None
    assert schedule.next(1, 2, None, 60.0) is first
    assert schedule.failed(0, first) == 0
    assert not schedule.finished
    assert schedule.done(1, first, None, 100.0)
    assert schedule.finished


def test_costs_are_learnt_from_noisy_tasks() -> None:
    task_times, draw = TaskTimeModel(LAYERS), random.Random(1)
    for number in range(300):
        candidates = tuple(draw.sample(BLOCK, draw.randint(1, 6)))
        layers = sum(LAYERS - candidate.layer for candidate in candidates) + LAYERS
        seconds = (layers * LAYER_S + len(candidates) * HEAD_S) * draw.uniform(0.8, 1.2)
        task_times.observe(
            number % 7,
            ScoreTask("block", 0, "base", candidates, "o"),
            ScoreResult((), 1, seconds, LAYERS),
            seconds,
        )
    assert task_times.work_s(1, 1) == pytest.approx(LAYER_S + HEAD_S, rel=0.3)
    assert task_times.prefix_s() == pytest.approx(LAYERS * LAYER_S, rel=0.1)
    assert task_times.straggler_factor(3) == pytest.approx(1, abs=0.25)
    assert task_times.straggler_factor(99) == 1


ORDER = OrderTask("activation")


def test_a_task_of_unknown_time_runs_a_second_time_when_it_runs_for_long() -> None:
    """The first task of all may hang, and nobody knows how long it should take."""
    task_times = TaskTimeModel(LAYERS)
    task_times.observe_start(20.0)
    schedule = Schedule([ORDER], task_times)
    first = schedule.next(0, 2, None, 0.0)
    assert first is not None
    assert schedule.next(1, 2, None, 99.0) is None, "five starts have not passed yet"
    assert schedule.next(1, 2, None, 101.0) is first
    assert schedule.next(2, 3, None, 1000.0) is None, "two are enough"
    assert schedule.done(1, first, None, 131.0)
    assert schedule.finished
    assert task_times.task_s(ORDER) == pytest.approx(30.0)
    assert schedule.limit_s(0, first) == pytest.approx(900.0), "known by now"


def test_the_first_candidates_run_a_second_time_too() -> None:
    schedule = Schedule(step(BLOCK[:1], 1), TaskTimeModel(LAYERS))
    first = schedule.next(0, 2, None, 0.0)
    assert first is not None
    assert schedule.next(1, 2, None, 59.0) is None
    assert schedule.next(1, 2, None, 61.0) is first


def test_a_time_that_somebody_else_has_shown_is_expected_of_all() -> None:
    """Both began before anybody knew; the second is late when the first has shown how long."""
    task_times = TaskTimeModel(LAYERS)
    schedule = Schedule([InfluenceTask(batch, "o") for batch in range(2)], task_times)
    quick, late = (schedule.next(evaluator, 2, None, 0.0) for evaluator in range(2))
    assert quick is not None
    assert late is not None
    assert schedule.limit_s(1, late) == 600.0
    assert schedule.done(0, quick, None, 4.0)
    assert schedule.limit_s(1, late) == pytest.approx(120.0)
    assert schedule.next(0, 2, None, 4.5) is None, "it is not late yet"
    assert schedule.next(0, 2, None, 12.5) is late


def test_a_task_of_unknown_time_gets_more_of_it_after_each_time_out() -> None:
    """So that one that only takes long is not given up like one that hangs."""
    task_times = TaskTimeModel(LAYERS)
    schedule, limits = Schedule([ORDER], task_times), []
    for evaluator in range(3):
        running = schedule.next(evaluator, 1, None, 0.0)
        assert running is not None
        limits.append(schedule.limit_s(evaluator, running))
        assert schedule.failed(evaluator, running) == evaluator + 1
    assert limits == [600.0, 2400.0, 9600.0]
    task_times.observe_start(60.0)
    again = schedule.next(3, 1, None, 0.0)
    assert again is not None
    assert schedule.limit_s(3, again) == 1200.0 * 64


def test_a_measurement_of_speed_is_neither_hurried_nor_disturbed() -> None:
    task = SpeedTask(SpeedSettings(1, 8, 8, 2), ())
    schedule = Schedule([task], TaskTimeModel(LAYERS))
    running = schedule.next(0, 2, None, 0.0)
    assert running is not None
    assert schedule.next(1, 2, None, 10_000.0) is None
    assert schedule.limit_s(0, running) == math.inf


def ten_seconds(number: int = 0) -> StatisticsTask:
    return StatisticsTask(tuple(range(10)), f"set {number}")


@pytest.mark.parametrize(("known", "left", "gets_one"), [(1, 2, 0), (1, 8, 1), (0, 2, 1)])
def test_a_straggler_leaves_a_whole_task_that_it_would_end_last(
    known: bool, left: int, gets_one: bool
) -> None:
    """It takes 1 + 0.9 x 3 times as long, 37 s; for the others are 10 s or 40 s of work."""
    sizes = {"statistics": (1.0, 1.0)} if known else {}
    task_times = TaskTimeModel(LAYERS, _sizes=sizes, _straggler_factors={0: 4.0})
    schedule = Schedule([ten_seconds(number) for number in range(left + 1)], task_times)
    assert schedule.next(1, 2, None, 0.0) is not None
    assert (schedule.next(0, 2, None, 0.0) is not None) == gets_one


def test_what_is_overdue_by_as_long_as_it_should_take_runs_a_second_time() -> None:
    task_times = TaskTimeModel(LAYERS, _sizes={"statistics": (1.0, 1.0)})
    schedule = Schedule([ten_seconds()], task_times)
    late = schedule.next(0, 2, None, 0.0)
    assert late is not None
    assert schedule.next(1, 2, None, 19.9) is None, "it may need 10 s more, as here"
    assert schedule.next(1, 2, None, 20.1) is late, "its evaluator may be stuck"
