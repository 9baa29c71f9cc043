from __future__ import annotations

import pickle

import pytest

from pruning.errors import InputError, ScoringError, TargetNotReached
from workers.pool.faults import (
    Decision,
    Failure,
    Fault,
    FaultKind,
    FaultLog,
    FaultPolicy,
    WorkersLost,
)


@pytest.mark.parametrize(
    ("kind", "count", "others_ready", "decision"),
    [
        ("evaluator lost", 1, False, Decision.RETRY),
        ("evaluator lost", 2, False, Decision.RETRY),
        ("evaluator lost", 3, True, Decision.ABORT),
        ("out of memory", 2, True, Decision.RETRY),
        ("out of memory", 3, True, Decision.ABORT),
        ("late", 2, True, Decision.RETRY),
        ("late", 3, False, Decision.ABORT),
        ("late", 0, True, Decision.RETRY),
        ("task error", 1, True, Decision.RETRY),
        ("task error", 2, True, Decision.ABORT),
        ("start failed", 2, False, Decision.RETRY),
        ("start failed", 3, False, Decision.ABORT),
        ("start failed", 2, True, Decision.RETRY),
        ("start failed", 3, True, Decision.BACK_OFF),
        ("start failed", 300, True, Decision.BACK_OFF),
        ("node lost", 1000, False, Decision.RETRY),
    ],
)
def test_policy(kind: FaultKind, count: int, others_ready: bool, decision: Decision) -> None:
    assert FaultPolicy().decide(Failure(kind, count, "cause", others_ready)) is decision


def test_nobody_is_there_to_go_on_unless_that_is_said() -> None:
    assert FaultPolicy().decide(Failure("start failed", 3, "cause")) is Decision.ABORT


def test_back_off_doubles_up_to_a_limit() -> None:
    policy = FaultPolicy()
    assert [policy.back_off_s(count) for count in (3, 4, 5, 6, 7, 8, 9, 10**6)] == [
        30,
        60,
        120,
        240,
        480,
        600,
        600,
        600,
    ]


def test_a_node_that_goes_blames_no_task() -> None:
    assert not FaultPolicy.blames_task("node lost")
    assert FaultPolicy.blames_task("evaluator lost")
    assert FaultPolicy.blames_task("late")


def test_the_log_counts_all_and_keeps_the_last() -> None:
    log = FaultLog()
    for number in range(60):
        log.add(
            Fault(
                float(number),
                "late" if number % 2 else "node lost",
                "evaluator 1",
                "cause",
                "decision",
            )
        )
    assert log.counts == {"late": 30, "node lost": 30}
    assert [fault.timestamp for fault in log.recent] == [float(number) for number in range(10, 60)]


def test_what_went_wrong_is_counted_from_nothing() -> None:
    log = FaultLog()
    assert not any(log.counters().values())
    log.add(Fault(1.0, "late", "evaluator 1", "cause", "decision"))
    log.num_lost_evaluations, log.num_speculative_tasks, log.num_oom_splits = 2, 3, 4
    assert log.counters() == {
        "faults": {"late": 1},
        "lost_evaluations": 2,
        "speculative_tasks": 3,
        "oom_splits": 4,
        "copied_tasks": 3,
        "halved_tasks": 4,
    }


@pytest.mark.parametrize(
    "error", [InputError("a"), TargetNotReached("b"), ScoringError("c"), WorkersLost("d")]
)
def test_errors_cross_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
