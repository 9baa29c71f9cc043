from __future__ import annotations

import pickle

import pytest

from pruning.errors import InputError, ScoringError, TargetNotReached
from workers.faults import Decision, Failure, FaultPolicy, WorkersLost


@pytest.mark.parametrize(
    ("kind", "count", "decision"),
    [
        ("worker_lost", 1, Decision.RETRY),
        ("worker_lost", 2, Decision.RETRY),
        ("worker_lost", 3, Decision.ABORT),
        ("task_error", 1, Decision.RETRY),
        ("task_error", 2, Decision.ABORT),
        ("start_failed", 2, Decision.RETRY),
        ("start_failed", 3, Decision.ABORT),
    ],
)
def test_policy(kind: str, count: int, decision: Decision) -> None:
    assert FaultPolicy().decide(Failure(kind, count, "cause")) is decision  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [InputError("a"), TargetNotReached("b"), ScoringError("c"), WorkersLost("d")])
def test_errors_cross_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
