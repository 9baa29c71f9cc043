"""Evaluators that go wrong at work: their tasks are done by others, and they are replaced."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pruning.importance.channel_order import ChannelOrder
from pruning.importance.criteria import Importance
from tests.workers.pool.misbehaving import (
    Broken,
    CrashesOnce,
    ExitsOnce,
    Poison,
    RaisesOnce,
    StopsInTheFirstTask,
)
from tests.workers.pool.scoring import Scores, prepare, score, search, steps
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.shapes import Evaluator
from workers.pool.faults import WorkersLost
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, OrderTask

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(ExitsOnce, "evaluator lost"), (CrashesOnce, "evaluator lost"), (RaisesOnce, "task error")],
    ids=["exit", "crash", "exception"],
)
def test_one_that_goes_wrong_is_replaced(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    expected: list[Scores],
    kind: type[Evaluator],
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RayPool(spec, Placement(2, num_gpus=0), kind=kind) as pool:
        assert search(pool, 2) == expected[:2]
        assert pool.faults.counts == {fault: 1}
        assert 1 <= pool.faults.num_lost_evaluations <= 8
        assert len(pool.describe()) == 2
    assert "another one takes its place" in caplog.text


def test_evaluators_killed_in_the_middle_of_a_step(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    """SIGKILL from outside, twice."""
    with RayPool(spec, Placement(2, num_gpus=0)) as pool:
        victims = [info.pid for info in pool.describe()]

        def kill(done: int) -> None:
            if (done >= 4 and len(victims) == 2) or (done >= 12 and victims):
                os.kill(victims.pop(), signal.SIGKILL)

        assert search(pool, 6, kill) == expected[:6]
        assert not victims
        assert len(pool.describe()) == 2


def test_a_stopped_evaluator_holds_nothing_up(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    """SIGSTOP is reported by nobody.

    Another evaluator does its task as well; when its time is up, it is replaced.
    """
    with RayPool(spec, Placement(2, num_gpus=0), task_timeout_s=600) as pool:
        stopped, _ = pool.describe()

        def stop(done: int) -> None:
            if (
                done == 6 * 4 and pool.faults.num_speculative_tasks == 0
            ):  # the end of a step of another shape: costs are known by then
                os.kill(stopped.pid, signal.SIGSTOP)

        order = prepare(pool)
        assert [score(pool, tasks, stop) for tasks in steps(order, 6)] == expected[:6]
        assert pool.faults.num_speculative_tasks >= 1
        assert pool.faults.counts == {}, "the search waited for the time-out"
        pool.task_timeout_s = 8
        deadline = time.monotonic() + 90
        while not pool.faults.counts and time.monotonic() < deadline:
            assert score(pool, steps(order)[0]) == expected[0]
        assert pool.faults.counts == {"late": 1}
        assert stopped.pid not in {info.pid for info in pool.describe()}


def test_one_that_stops_in_the_first_task_holds_nothing_up(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    expected: list[Scores],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The channel order, whose time nobody knows, goes to another one too.

    Its answer shows how long the order takes, and that the first one hangs.
    """
    monkeypatch.setattr("workers.pool.task_times._PATIENCE_AT_LEAST_S", 2.0)
    monkeypatch.setattr("workers.pool.task_times._PATIENCE_START_TIMES", 0.0)
    monkeypatch.setattr("workers.pool.task_times._HUNG_AT_LEAST_S", 5.0)
    with RayPool(spec, Placement(2, num_gpus=0), kind=StopsInTheFirstTask) as pool:
        pool.describe()
        order = prepare(pool)
        assert pool.faults.num_speculative_tasks == 1
        assert score(pool, steps(order)[0]) == expected[0]
        deadline = time.monotonic() + 90
        while not pool.faults.counts and time.monotonic() < deadline:
            assert score(pool, steps(order)[0]) == expected[0]
        assert pool.faults.counts == {"late": 1}


@pytest.mark.parametrize(
    ("importance", "limit_s"), [("l1", 3), ("activation", 6)], ids=["of weights", "of a text"]
)
def test_one_alone_that_stops_in_the_first_task_is_replaced(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    monkeypatch: pytest.MonkeyPatch,
    importance: Importance,
    limit_s: int,
) -> None:
    """And not after an hour, which a task may take otherwise; of one that reads a whole text, not
    before a slow device would have read it, whatever other tasks may take.
    """
    monkeypatch.setattr("workers.pool.task_times._UNKNOWN_AT_LEAST_S", 3.0)
    monkeypatch.setattr("workers.pool.task_times._UNKNOWN_START_TIMES", 0.0)
    placement = Placement(1, num_gpus=0)
    with RayPool(spec, placement, task_timeout_s=5, kind=StopsInTheFirstTask) as pool:
        pool.task_times.slowest_text_s = 6.0
        [(_, order)] = [each for some in pool.run([OrderTask(importance)]) for each in some]
        assert isinstance(order, ChannelOrder)
        assert pool.faults.counts == {"late": 1}
        assert pool.faults.recent[0].cause == f"no answer within {limit_s} s"


def test_alone_and_stopped(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    with RayPool(spec, Placement(1, num_gpus=0), task_timeout_s=4) as pool:
        os.kill(pool.describe()[0].pid, signal.SIGSTOP)
        assert search(pool) == expected[:1]
        assert pool.faults.counts == {"late": 1}
        cause = pool.faults.recent[0].cause
        assert cause == "no answer within 4 s (cluster.task_timeout_s)"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Poison,
            (
                r"failed 3 times on different evaluators \(block batch 2: [^,]* of layer 1\); the "
                r"last time: evaluator lost"
            ),
        ),
        (
            Broken,
            (
                r"failed 2 times on different evaluators \(block batch 2: .*\); the last time: "
                r"task "
                r"error: shapes cannot be multiplied"
            ),
        ),
    ],
)
def test_a_poison_candidate_does_not_kill_for_ever(
    local_cluster: LocalMachine, spec: EvaluatorSpec, kind: type[Evaluator], message: str
) -> None:
    """The message names the one candidate, not the chunk that it was in."""
    with (
        RayPool(spec, Placement(1, num_gpus=0), kind=kind) as pool,
        pytest.raises(WorkersLost, match=message),
    ):
        search(pool)
