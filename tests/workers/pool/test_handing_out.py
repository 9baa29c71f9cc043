"""What a schedule hands out, to the candidate and the second: with times that are known exactly."""

from __future__ import annotations

import pytest

from pruning.shape import Removal
from workers.pool.running import Running
from workers.pool.schedule import Schedule
from workers.pool.task_times import TaskTimeModel
from workers.prefix import PrefixKey
from workers.tasks import InfluenceTask, OrderTask, ScoreResult, ScoreTask, StatisticsTask, Task

LAYERS = 10
HELD: PrefixKey = ("block", 0, "base")


def known(layer_s: float = 0.0, head_s: float = 0.0) -> TaskTimeModel:
    """Of ten layers; of tasks that are handed out whole a second for each of their size."""
    sizes = {"statistics": (1.0, 1.0)}
    return TaskTimeModel(LAYERS, measured=True, _layer_s=layer_s, _head_s=head_s, _sizes=sizes)


def removals(*num_layers: int) -> tuple[Removal, ...]:
    """Candidates that run so many layers each."""
    return tuple(
        Removal("mlp_channels", LAYERS - each, size) for size, each in enumerate(num_layers)
    )


def scoring(*num_layers: int, batch: int = 0) -> ScoreTask:
    return ScoreTask("block", batch, "base", removals(*num_layers), "o")


def seconds(size: int, number: int = 0) -> StatisticsTask:
    """A whole task that takes an average evaluator so many seconds."""
    return StatisticsTask(tuple(range(size)), f"set {number}")


def slow(schedule: Schedule, factor: float, evaluator: int = 0) -> None:
    """From now on an evaluator is taken to need so many times as long as others."""
    schedule.task_times._straggler_factors = {evaluator: factor}


def taken(running: Running | None) -> Running:
    assert running is not None
    return running


def num_candidates(running: Running | None) -> int:
    task = taken(running).task
    assert isinstance(task, ScoreTask)
    return len(task.candidates)


@pytest.mark.parametrize(
    ("num_evaluators", "num_left", "num_batches", "factor", "handed_out"),
    [
        (1, 8, 1, 1.0, 8),
        (1, 60, 1, 1.0, 10),
        (2, 12, 1, 1.0, 4),
        (2, 12, 2, 1.0, 8),
        (4, 12, 2, 1.0, 4),
        (2, 14, 1, 2.0, 2),
    ],
    ids=["all", "ten seconds", "two share", "a batch each", "two a batch", "a slow one"],
)
def test_a_task_is_a_share_of_what_is_left_and_ten_seconds_at_most(
    num_evaluators: int, num_left: int, num_batches: int, factor: float, handed_out: int
) -> None:
    """Candidates of 1 s. One part in 1.5 of what each evaluator of a batch would get."""
    tasks = [scoring(*[1] * num_left, batch=batch) for batch in range(num_batches)]
    schedule = Schedule(tasks, known(head_s=1.0))
    slow(schedule, factor)
    assert num_candidates(schedule.next(0, num_evaluators, None, 0.0)) == handed_out


@pytest.mark.parametrize(
    ("num_evaluators", "num_left", "handed_out"),
    [(4, 12, 3), (100, 1050, 10), (100, 1600, 12)],
    ids=["50 ms", "what is there for each", "2 ms for each other"],
)
def test_a_task_is_long_enough_to_be_worth_handing_out(
    num_evaluators: int, num_left: int, handed_out: int
) -> None:
    """Candidates of two layers and 16 ms. One that is shorter than 50 ms, or than the driver needs
    to serve all others, is joined with more, as far as there are more for everybody.
    """
    schedule = Schedule([scoring(*[2] * num_left)], known(layer_s=1 / 128))
    assert num_candidates(schedule.next(0, num_evaluators, HELD, 0.0)) == handed_out


def test_as_long_as_nobody_knows_times_two_candidates_are_a_task() -> None:
    schedule = Schedule([scoring(*[1] * 60)], TaskTimeModel(LAYERS))
    assert num_candidates(schedule.next(0, 1, None, 0.0)) == 2


def test_candidates_are_told_apart_when_they_have_failed_twice_and_not_before() -> None:
    schedule, sizes = Schedule([scoring(*[1] * 8)], known(head_s=1.0)), []
    for _ in range(3):
        running = taken(schedule.next(0, 1, None, 0.0))
        sizes.append(num_candidates(running))
        schedule.failed(0, running)
    assert sizes == [8, 8, 1]


def test_a_new_step_takes_evaluators_for_less_different() -> None:
    """A tenth: who gets no work cannot show that it is fast again."""
    times = known()
    times._straggler_factors = {0: 3.0, 1: 0.5}
    Schedule([], times)
    assert [times.straggler_factor(number) for number in range(3)] == [2.8, 0.55, 1.0]


def test_whole_tasks_come_first_and_the_largest_of_them_before_others() -> None:
    tasks: list[Task] = [scoring(1), seconds(1), seconds(3), seconds(2)]
    schedule = Schedule(tasks, known())
    order = [taken(schedule.next(number, 4, None, 0.0)).task for number in range(4)]
    assert order == [seconds(3), seconds(2), seconds(1), scoring(1)]


def test_all_is_handed_out_when_neither_whole_tasks_nor_candidates_are_left() -> None:
    schedule = Schedule([scoring(1), seconds(1)], known())
    assert not schedule.finished
    for number in range(2):
        assert not schedule.handed_out
        taken(schedule.next(number, 2, None, 0.0))
    assert schedule.handed_out
    assert not schedule.finished, "they are at work"
    assert Schedule([seconds(1)], known()).handed_out is False
    assert Schedule([scoring()], known()).finished, "there was nothing to do"


def test_an_evaluator_goes_on_with_its_batch_while_something_is_left_of_it() -> None:
    schedule = Schedule([scoring(1, 1)], known(head_s=1.0))
    assert schedule.continues(HELD)
    assert not schedule.continues(None)
    assert not schedule.continues(("block", 1, "base"))
    taken(schedule.next(0, 1, HELD, 0.0))
    assert not schedule.continues(HELD)


@pytest.mark.parametrize(("num_ones", "helps"), [(5, False), (6, False), (7, True)])
def test_a_second_pair_of_hands_begins_where_it_would_be_done_before_the_first(
    num_ones: int, helps: bool
) -> None:
    """The first has the prefix and two candidates of 4 s, with others of 1 s; the second needs 10 s
    for the prefix and 4 s for the candidate that comes next.
    """
    schedule = Schedule([scoring(4, 4, *[1] * num_ones)], known(layer_s=1.0))
    assert num_candidates(schedule.next(0, 3, HELD, 0.0)) == 1
    assert (schedule.next(1, 3, None, 0.0) is not None) == helps


def test_a_batch_that_nobody_is_at_any_more_is_begun_without_its_prefix() -> None:
    schedule = Schedule([scoring(1, 1)], known(layer_s=1.0))
    first = taken(schedule.next(0, 4, HELD, 0.0))
    assert schedule.next(1, 4, None, 0.0) is None, "the prefix takes 10 s, all that is left 1 s"
    assert schedule.done(0, first, ScoreResult((), 1, 1.0), 1.0)
    assert schedule.next(1, 4, None, 1.0) is not None


@pytest.mark.parametrize(
    ("held", "total", "gets_one"),
    [(HELD, 18, False), (HELD, 20, True), (None, 40, False), (None, 58, False), (None, 60, True)],
)
def test_a_straggler_leaves_a_candidate_that_it_would_end_last(
    held: PrefixKey | None, total: int, gets_one: bool
) -> None:
    """The next takes 4 layers and a head of 1 s each, 10 s on an evaluator that is half as fast,
    30 s without the prefix; all have half of `total` seconds of work.
    """
    ones = (total - 5) // 2  # of a layer and a head
    schedule = Schedule([scoring(5, 4, *[1] * ones, *[0] * ((total - 5) % 2))], known(1.0, 1.0))
    assert num_candidates(schedule.next(1, 99, HELD, 0.0)) == 1
    slow(schedule, 2.0)
    assert (schedule.next(0, 2, held, 0.0) is not None) == gets_one


@pytest.mark.parametrize(
    ("factor", "left", "gets_one"),
    [(1.0, 1, True), (1.99, 3, True), (2.0, 3, False), (2.0, 4, True), (4.0, 7, False)],
)
def test_a_straggler_leaves_a_whole_task_that_it_would_end_after_all_others(
    factor: float, left: int, gets_one: bool
) -> None:
    """Tasks of 10 s, of which two evaluators have `left`. One that needs less than twice as long as
    others is treated like them.
    """
    schedule = Schedule([seconds(10, number) for number in range(left + 1)], known())
    taken(schedule.next(1, 2, None, 0.0))
    slow(schedule, factor)
    assert (schedule.next(0, 2, None, 0.0) is not None) == gets_one


def test_nobody_leaves_a_whole_task_of_a_kind_that_was_never_seen() -> None:
    schedule = Schedule([OrderTask("activation"), InfluenceTask(0, "o")], known())
    taken(schedule.next(1, 2, None, 0.0))
    slow(schedule, 100.0)
    assert schedule.next(0, 2, None, 0.0) is not None


def test_an_answer_that_does_not_say_its_seconds_took_those_since_it_was_handed_out() -> None:
    times = TaskTimeModel(LAYERS)
    schedule = Schedule([seconds(2)], times)
    running = taken(schedule.next(0, 1, None, 100.0))
    assert schedule.done(0, running, None, 106.0)
    assert times.task_s(seconds(1)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("now", "again"), [(14.9, True), (30.0 - (1.5 * 10.0 + 0.05), True), (15.0, False)]
)
def test_a_task_runs_again_where_that_takes_two_thirds_of_the_time_left(
    now: float, again: bool
) -> None:
    """Of 10 s on an average evaluator: a slow one has `now` of its 30 s behind it."""
    schedule = Schedule([seconds(10)], known())
    slow(schedule, 3.0)
    first = taken(schedule.next(0, 2, None, 0.0))
    assert schedule.next(1, 2, None, now) is (first if again else None)


@pytest.mark.parametrize(
    ("size", "now", "again"),
    [(10, 20.0, False), (10, 20.1, True), (1, 1.9, False), (1, 2.1, True)],
)
def test_what_is_overdue_for_longer_than_it_should_take_runs_again(
    size: int, now: float, again: bool
) -> None:
    schedule = Schedule([seconds(size)], known())
    first = taken(schedule.next(0, 2, None, 0.0))
    assert schedule.next(1, 2, None, now) is (first if again else None)


@pytest.mark.parametrize(
    ("expected_s", "overdue_s", "again"),
    [(0.15, 0.2, False), (0.15, 0.26, True), (0.3, 0.29, False), (0.3, 0.4, True)],
)
def test_a_quarter_of_a_second_is_not_late(
    expected_s: float, overdue_s: float, again: bool
) -> None:
    """However short the task is: the machine may be busy."""
    schedule = Schedule([scoring(0)], known(head_s=expected_s))
    first = taken(schedule.next(0, 2, HELD, 0.0))
    now = expected_s + overdue_s
    assert schedule.next(1, 2, HELD, now) is (first if again else None)


def test_of_two_late_tasks_the_one_expected_last_runs_again() -> None:
    """Both began at once, on two evaluators that should need 20 s and 36.1 s."""
    schedule = Schedule([seconds(20), seconds(19)], known())
    slow(schedule, 1.9, evaluator=1)
    first, second = (taken(schedule.next(number, 2, None, 0.0)) for number in range(2))
    assert schedule.next(2, 3, None, 0.0) is second
    assert schedule.next(3, 4, None, 39.0) is None, "two are at work on the other"
    assert schedule.next(3, 4, None, 41.0) is first


def test_of_two_tasks_of_unknown_time_the_older_runs_again_after_a_minute() -> None:
    schedule = Schedule([InfluenceTask(number, "o") for number in range(2)], TaskTimeModel(LAYERS))
    older, newer = (taken(schedule.next(number, 2, None, 100.0 + number)) for number in range(2))
    assert schedule.next(2, 3, None, 159.9) is None
    assert schedule.next(2, 3, None, 160.0) is older
    assert schedule.next(3, 4, None, 160.9) is None
    assert schedule.next(3, 4, None, 161.0) is newer
