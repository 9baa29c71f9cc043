"""Scores do not depend on how many evaluators there are, nor on where they run."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from tests.workers.pool.misbehaving import ComputesOtherwise, FindsBadInput, PretendedGpus, Slow
from tests.workers.pool.scoring import Scores, prepare, score, search, steps
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.pool.ray_faults import cause_of, replies
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec

pytestmark = pytest.mark.ray


def _wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], (
        "evaluators are left after the pool closed"
    )


@pytest.mark.parametrize("num_evaluators", [1, 2, 3])
def test_same_bytes_for_any_number_of_evaluators(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores], num_evaluators: int
) -> None:
    with RayPool(spec, Placement(num_evaluators, num_gpus=0)) as pool:
        infos = pool.describe()
        assert search(pool, 2) == expected[:2]
        assert pool.num_evaluators == num_evaluators
        assert [
            (info.visible_gpus, info.arithmetic.num_threads, info.arithmetic.device[:4])
            for info in infos
        ] == [((), 1, "cpu ")] * num_evaluators
        states = pool.states()
        assert sum(state.num_tasks for state in states) >= 9
        assert {state.state for state in states} <= {"ready", "working"}
    pids = {info.pid for info in infos}
    assert len(pids) == num_evaluators
    _wait_until_gone(pids)


def _named_actors() -> list[str]:
    return sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))


def test_evaluators_have_the_name_of_their_run(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """Another pool may have the same, at the same time."""
    placement = Placement(1, num_gpus=0)
    with RayPool(spec, placement, name="a run"), RayPool(spec, placement, name="a run"):
        assert _named_actors() == ["a run/evaluator-0", "a run/evaluator-0"]
    with RayPool(spec, placement):
        assert "evaluator-0" in _named_actors()


@pytest.mark.slow
def test_an_evaluator_is_replaced_by_one_of_another_name(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """Its number is that by which the log calls it."""
    with RayPool(spec, Placement(1, num_gpus=0), name="a run") as pool:
        [info] = pool.describe()
        os.kill(info.pid, signal.SIGKILL)
        assert search(pool, 1)
        assert [state.number for state in pool.states()] == [1]
        assert "a run/evaluator-1" in _named_actors()


def test_evaluators_that_compute_otherwise_are_told_apart(
    local_cluster: LocalMachine, spec: EvaluatorSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """By a warning that says in what they differ, and by every answer."""
    with RayPool(spec, Placement(2, num_gpus=0), kind=ComputesOtherwise) as pool:
        devices = {info.arithmetic.device for info in pool.describe()}
        [said] = [text for text in caplog.messages if "computes otherwise" in text]
        [tasks] = steps(prepare(pool))
        found, until = set(), time.monotonic() + 120
        while found != devices and time.monotonic() < until:  # one alone may take all of a step
            for answers in pool.run(tasks):
                results: list[Any] = [result for _, result in answers]
                found |= {result.arithmetic.device for result in results}
    first, [other] = pool.arithmetic.device, devices - {pool.arithmetic.device}
    assert "cuda X" in devices
    assert f"(device: {other}, {first}; processor: " in said
    assert "the last digits of scores depend on who computes them" in said
    assert found == devices


def test_as_many_as_fit(local_cluster: LocalMachine, spec: EvaluatorSpec) -> None:
    with RayPool(spec, Placement(None, num_gpus=0, num_cpus=4)) as pool:
        assert len(pool.describe()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("count", "gpus"), [(4, 1), (2, 2)], ids=["four with one", "two pairs"])
def test_each_evaluator_sees_its_own_gpus(
    local_cluster: LocalMachine, spec: EvaluatorSpec, count: int, gpus: int
) -> None:
    with RayPool(spec, Placement(count, num_gpus=gpus), launcher=PretendedGpus()) as pool:
        seen = [info.visible_gpus for info in pool.describe()]
    assert all(len(own) == gpus for own in seen)
    assert len({gpu for own in seen for gpu in own}) == count * gpus


def test_what_evaluators_log_is_in_our_log(
    local_cluster: LocalMachine, spec: EvaluatorSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and with who said it and where."""
    placement = Placement(1, num_gpus=1)
    with (
        caplog.at_level(logging.INFO),
        RayPool(spec, placement, launcher=PretendedGpus()) as pool,
    ):
        pool.describe()
    said = [
        record.getMessage()
        for record in caplog.records
        if "torch sees no CUDA device" in record.getMessage()
    ]
    assert len(said) == 1
    assert said[0].startswith("evaluator 0 on ")
    assert len([record for record in caplog.records if "ready after" in record.getMessage()]) == 1


def test_a_caller_that_stops_listening_loses_no_evaluator(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    with RayPool(spec, Placement(2, num_gpus=0)) as pool:
        order = prepare(pool)
        [tasks] = steps(order)
        for answers in pool.run(tasks):
            if answers:
                break
        assert score(pool, tasks) == expected[0]
        assert pool.faults.counts == {}


def test_the_last_tasks_of_a_straggler_run_a_second_time(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    with RayPool(spec, Placement(2, num_gpus=0), kind=Slow) as pool:
        pool.describe()
        started = time.monotonic()
        assert search(pool, 12) == expected
        seconds, states = (
            time.monotonic() - started,
            sorted(pool.states(), key=lambda state: state.num_tasks),
        )
        assert states[0].num_tasks < states[1].num_tasks / 4
        assert seconds < 12 * 1.0, "every step waited for the slow one"
        assert pool.faults.counts == {}


def test_a_pool_goes_on_after_bad_input(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    """The next search of a sweep has nothing to do with it."""
    with RayPool(spec, Placement(1, num_gpus=0), kind=FindsBadInput) as pool:
        tasks = steps(prepare(pool))[0]
        with pytest.raises(InputError, match="one sequence does not fit"):
            score(pool, tasks)
        others = [task for task in tasks if task.batch != 2]
        assert score(pool, others) == {key: nll for key, nll in expected[0].items() if key[1] != 2}
        assert not pool.faults.counts


@ray.remote(num_cpus=0)
def _number(number: int) -> int:
    if number == 1:
        raise ValueError("one")
    return number


def test_what_failed_keeps_its_place_among_answers(local_cluster: LocalMachine) -> None:
    assert replies([_number.remote(number) for number in (2, 0)]) == [2, 0]
    first, failed, last = replies([_number.remote(number) for number in range(3)])
    assert (first, last) == (0, 2)
    assert str(cause_of(failed)) == "one"


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
