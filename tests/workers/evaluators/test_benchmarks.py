"""Evaluators of benchmarks: what they answer depends on the task alone, whoever does it and
whatever happens to them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from tests.documents import save_reader
from tests.workers.pool import misbehaving as evaluators
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.benchmarks import BenchmarkEvaluator
from workers.pool.inline_pool import InlinePool
from workers.pool.protocol import Pool
from workers.pool.ray_pool import RayPool
from workers.pool.schedule import Schedule
from workers.pool.task_times import TaskTimeModel
from workers.tasks import (
    AnswerResult,
    AnswerTask,
    BenchmarkSpec,
    OrderTask,
    RequestTask,
    WindowTask,
)

REQUESTS = [
    ("the cat", " sees the dog"),
    ("the cat", " runs"),
    ("", "a bird"),
    ("the old house with the red tree", " sings"),
    ("a", " b"),
]


@pytest.fixture
def spec(tmp_path: Path) -> BenchmarkSpec:
    return BenchmarkSpec(Checkpoint(save_reader(tmp_path / "model")), "float32")


def tasks() -> list[AnswerTask]:
    windows = torch.randint(1, 200, (4, 20), generator=torch.Generator().manual_seed(1)).numpy()
    return [
        *(
            RequestTask.of("loglikelihood", REQUESTS[start : start + 2], "piqa")
            for start in (0, 2, 4)
        ),
        RequestTask.of("loglikelihood_rolling", [("the cat sees the dog",), ("fish",)]),
        RequestTask.of("generate_until", [("the cat", {"until": ["\n"], "max_gen_toks": 4})]),
        WindowTask.of(windows[:2]),
        WindowTask.of(windows[2:]),
    ]


def answers(pool: Pool) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for some in pool.run(tasks()):
        for task, result in some:
            assert isinstance(task, (RequestTask, WindowTask))
            assert isinstance(result, AnswerResult)
            assert task.digest not in found
            found[task.digest] = result.answers
    return found


def test_the_order_of_tasks_changes_nothing(spec: BenchmarkSpec) -> None:
    first, second = BenchmarkEvaluator(spec), BenchmarkEvaluator(spec)
    there = [first.run(task).answers for task in tasks()]
    back = [second.run(task).answers for task in reversed(tasks())][::-1]
    assert there == back
    assert [len(found) for found in there] == [2, 2, 1, 2, 1, 2, 2]


def test_every_task_that_samples_has_the_same_seed(spec: BenchmarkSpec) -> None:
    """Whatever was drawn before, and nothing is drawn from the process's own generator."""
    how = {"until": ["\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    task = RequestTask.of("generate_until", [("the cat", how)])
    evaluator = BenchmarkEvaluator(spec)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = evaluator.run(task).answers
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert evaluator.run(task).answers == first


def test_long_requests_are_counted(spec: BenchmarkSpec) -> None:
    result = BenchmarkEvaluator(spec).run(
        RequestTask.of("loglikelihood", [("word " * 100, "end"), ("the cat", " runs")])
    )
    assert result.num_truncated == 1


def test_an_answer_longer_than_the_context_is_refused(spec: BenchmarkSpec) -> None:
    """As the harness does, but in words: it could only be judged in part."""
    with pytest.raises(
        InputError,
        match=(
            r"requests may have 320 tokens, for 1 requests .* of piqa: assert "
            r"len\(continuation_enc\) <="
        ),
    ):
        BenchmarkEvaluator(spec).run(
            RequestTask.of("loglikelihood", [("the cat", " runs" * 100)], "piqa")
        )


def test_tasks_of_others_are_refused(spec: BenchmarkSpec) -> None:
    with pytest.raises(TypeError, match="cannot do channel order by l1"):
        BenchmarkEvaluator(spec).run(OrderTask("l1"))


def test_digests_tell_tasks_apart() -> None:
    one = RequestTask.of("loglikelihood", [("a", "b")])
    assert one == RequestTask.of("loglikelihood", [("a", "b")], "another label")
    others = [
        RequestTask.of("generate_until", [("a", "b")]),
        RequestTask.of("loglikelihood", [("ab", "")]),
        RequestTask.of("loglikelihood", [("a", "b"), ("a", "b")]),
    ]
    assert len({one.digest, *(task.digest for task in others)}) == 4
    ids = torch.arange(12).numpy()
    assert WindowTask.of(ids.reshape(3, 4)).digest != WindowTask.of(ids.reshape(4, 3)).digest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [evaluators.DiesOfTheFirstRequest, evaluators.RaisesAtTheFirstRequest]
)
def test_an_evaluator_that_is_lost_changes_nothing(
    spec: BenchmarkSpec, local_cluster: LocalMachine, kind: type[BenchmarkEvaluator]
) -> None:
    expected = answers(InlinePool(spec, kind=BenchmarkEvaluator))
    with RayPool(spec, Placement(2, 0, 1), kind=kind) as pool:
        assert answers(pool) == expected
        assert sum(pool.faults.counts.values()) == 1
        assert pool.faults.num_lost_evaluations > 0


def long_and_short() -> list[RequestTask]:
    return [
        RequestTask.of("loglikelihood", [("word " * length, str(length))])
        for length in (1, 50, 7, 20)
    ]


def test_the_longest_go_first_and_times_are_learnt() -> None:
    task_times = TaskTimeModel(4)
    schedule = Schedule(long_and_short(), task_times)
    handed = [schedule.next(evaluator, 4, None, 0.0) for evaluator in range(4)]
    tasks = [running.task for running in handed if running is not None]
    sizes = [task.size for task in tasks if isinstance(task, RequestTask)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes, reverse=True)
    first, last = handed[0], handed[-1]
    assert first is not None
    assert last is not None
    assert not task_times.knows(last.task)
    schedule.done(0, first, AnswerResult(((0.0, True),), 10.0), 11.0)
    assert task_times.knows(last.task)
    assert task_times.task_s(last.task) == pytest.approx(10.0 * sizes[-1] / sizes[0])


def test_a_late_task_runs_a_second_time() -> None:
    task_times = TaskTimeModel(4)
    schedule = Schedule(long_and_short()[:2], task_times)
    late, quick = (schedule.next(evaluator, 2, None, 0.0) for evaluator in range(2))
    assert late is not None
    assert quick is not None
    schedule.done(1, quick, AnswerResult(((0.0, True),), 0.5), 0.6)
    assert schedule.next(1, 2, None, 0.5) is None, "it is not late yet"
    assert schedule.next(1, 2, None, 1000.0) is late


def test_failures_are_counted_for_each_task() -> None:
    """Two tasks that lose an evaluator each are not one that loses two."""
    schedule = Schedule(long_and_short()[:2], TaskTimeModel(4))
    one, other = (schedule.next(evaluator, 2, None, 0.0) for evaluator in range(2))
    assert one is not None
    assert other is not None
    assert schedule.failed(0, one) == 1
    assert schedule.failed(1, other) == 1
    again = schedule.next(2, 2, None, 1.0)
    assert again is not None
    assert schedule.failed(2, again) == 2
