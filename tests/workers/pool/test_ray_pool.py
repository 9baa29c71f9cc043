from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import ActorUnavailableError

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.importance.criteria import Importance
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape, Removal
from tests.workers.pool.misbehaving import (
    Broken,
    CrashesOnce,
    ExitsOnce,
    FailsToStart,
    FailsToStartAfterTheFirst,
    FailsToStartTwice,
    FindsBadInput,
    Poison,
    RaisesOnce,
    Slow,
)
from workers.cluster.machine import LocalMachine, Node
from workers.cluster.placement import Placement
from workers.evaluators.shapes import Evaluator
from workers.pool.faults import FaultPolicy, WorkersLost
from workers.pool.inline_pool import InlinePool
from workers.pool.protocol import Pool
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec, OrderTask, ScoreResult, ScoreTask

pytestmark = pytest.mark.ray

DENSE = ModelShape.dense(4, 3, 48)
REMOVALS = tuple(Removal("attention", layer, 0) for layer in range(4)) + tuple(
    Removal("mlp_channels", layer, 32) for layer in range(4)
)

Scores = dict[tuple[str, int, Removal | None], tuple[float, ...]]


def prepare(pool: Pool) -> str:
    """Sorts the weights; the order's fingerprint."""
    [(_, order)] = [answer for answers in pool.run([OrderTask("l1")]) for answer in answers]
    assert isinstance(order, ChannelOrder)
    pool.set_order(order)
    return order.fingerprint


def steps(order: str, count: int = 1) -> list[list[ScoreTask]]:
    """Four batches of eight candidates each, of `count` different shapes."""
    shape, found = DENSE, []
    for number in range(count):
        found.append(
            [
                ScoreTask(
                    "block",
                    batch,
                    shape.text,
                    REMOVALS if not number else REMOVALS[1:4] + REMOVALS[5:],
                    order,
                )
                for batch in range(4)
            ]
        )
        shape = DENSE.without(Removal("attention", 0, 0)).without(
            Removal("mlp_channels", 0, 48 - 3 * (number + 1))
        )
    return found


def score(
    pool: Pool, tasks: list[ScoreTask], after: Callable[[int], None] = lambda _: None
) -> Scores:
    """Every candidate must be answered exactly once. `after` is told how many are."""
    found: Scores = {}
    for answers in pool.run(tasks):
        for task, result in answers:
            assert isinstance(task, ScoreTask)
            assert isinstance(result, ScoreResult)
            for candidate, nll in zip(task.candidates, result.nll, strict=True):
                key = (task.base, task.batch, candidate)
                assert key not in found
                found[key] = nll
        after(len(found))
    assert Counter(key[:2] for key in found) == {
        (task.base, task.batch): len(task.candidates) for task in tasks
    }
    return found


def search(
    pool: Pool, count: int = 1, after: Callable[[int], None] = lambda _: None
) -> list[Scores]:
    order = prepare(pool)
    return [score(pool, tasks, after) for tasks in steps(order, count)]


def _wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], (
        "evaluators are left after the pool closed"
    )


@pytest.fixture(scope="module")
def expected(checkpoint_folder: Path, token_file: Path) -> list[Scores]:
    from safetensors.numpy import load_file

    ids = load_file(token_file)["input_ids"]
    return search(
        InlinePool(
            EvaluatorSpec(
                Checkpoint(checkpoint_folder),
                "float32",
                {"block": ids[:8], "width": ids[:4]},
                batch_size=2,
            )
        ),
        12,
    )


@pytest.mark.parametrize("num_evaluators", [1, 2, 3])
def test_same_bytes_for_any_number_of_evaluators(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores], num_evaluators: int
) -> None:
    with RayPool(spec, Placement(num_evaluators, num_gpus=0)) as pool:
        infos = pool.describe()
        assert search(pool, 2) == expected[:2]
        assert pool.num_evaluators == num_evaluators
        assert [(info.visible_gpus, info.num_threads, info.device[:4]) for info in infos] == [
            ((), 1, "cpu ")
        ] * num_evaluators
        states = pool.states()
        assert sum(state.num_tasks for state in states) >= 9
        assert {state.state for state in states} <= {"ready", "working"}
    pids = {info.pid for info in infos}
    assert len(pids) == num_evaluators
    _wait_until_gone(pids)


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
    with RayPool(spec, Placement(2, num_gpus=0), task_timeout_s=8) as pool:
        stopped, _ = pool.describe()

        def stop(done: int) -> None:
            if (
                done == 6 * 4 and pool.faults.num_speculative_tasks == 0
            ):  # the end of a step of another shape: costs are known by then
                os.kill(stopped.pid, signal.SIGSTOP)

        started, order = time.monotonic(), prepare(pool)
        assert [score(pool, tasks, stop) for tasks in steps(order, 6)] == expected[:6]
        assert pool.faults.num_speculative_tasks >= 1
        assert time.monotonic() - started < 8, "the search waited for the time-out"
        assert pool.faults.counts == {}
        deadline = time.monotonic() + 30
        while not pool.faults.counts and time.monotonic() < deadline:
            assert score(pool, steps(order)[0]) == expected[0]
        assert pool.faults.counts == {"late": 1}
        assert stopped.pid not in {info.pid for info in pool.describe()}


def test_alone_and_stopped(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    with RayPool(spec, Placement(1, num_gpus=0), task_timeout_s=4) as pool:
        os.kill(pool.describe()[0].pid, signal.SIGSTOP)
        assert search(pool) == expected[:1]
        assert pool.faults.counts == {"late": 1}


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


def test_starts_that_fail_are_tried_again(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    expected: list[Scores],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RayPool(spec, Placement(1, num_gpus=0), kind=FailsToStartTwice) as pool:
        assert search(pool) == expected[:1]
        assert pool.faults.counts == {"start failed": 2}
    assert "the disk of this node is broken" in caplog.text


def test_no_evaluator_ever_starts(local_cluster: LocalMachine, spec: EvaluatorSpec) -> None:
    message = "3 evaluators in a row failed to start; the last one: the disk of this node is broken"
    with (
        RayPool(spec, Placement(1, num_gpus=0), kind=FailsToStart) as pool,
        pytest.raises(WorkersLost, match=message),
    ):
        list(pool.wait())


def test_one_that_started_goes_on_without_those_that_do_not(
    local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[Scores]
) -> None:
    with RayPool(spec, Placement(2, num_gpus=0), kind=FailsToStartAfterTheFirst) as pool:
        order, deadline = prepare(pool), time.monotonic() + 90
        while (
            not (pool.faults.recent and "without it" in pool.faults.recent[-1].decision)
            and time.monotonic() < deadline
        ):
            assert score(pool, steps(order)[0]) == expected[0]
        failed = pool.faults.counts["start failed"]
        assert failed >= 3
        assert score(pool, steps(order)[0]) == expected[0]
        assert pool.faults.counts == {"start failed": failed}
        assert pool.num_evaluators == 1


def test_bad_input_found_by_an_evaluator_is_not_tried_again(
    local_cluster: LocalMachine, spec: EvaluatorSpec, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((spec.checkpoint.folder / "config.json").read_text())
    pool = RayPool(replace(spec, checkpoint=Checkpoint(tmp_path)), Placement(1, num_gpus=0))
    with pool, pytest.raises(InputError, match="no \\*.safetensors"):
        list(pool.wait())


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


def test_another_torch_on_a_node_is_refused(
    local_cluster: LocalMachine, spec: EvaluatorSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pool.ray_pool.torch.__version__", "1.0.0")
    with (
        RayPool(spec, Placement(1, num_gpus=0)) as pool,
        pytest.raises(InputError, match=r"torch 2\.\d+\.\d+ on .*, 1.0.0 here: install the same"),
    ):
        list(pool.wait())


def test_a_start_that_never_comes_says_what_was_asked_and_what_there_is(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    pool = RayPool(spec, Placement(1, num_gpus=64, stall_timeout_s=3))
    message = (
        r"no evaluator for 3 s \(cluster.stall_timeout_s\): 1 waiting for resources. Each "
        r"asks for 64 GPU and 1 CPU; the cluster has 8 GPU and 8 CPU on 1 node"
    )
    with pool, pytest.raises(WorkersLost, match=message):
        list(pool.wait())


def test_a_node_that_goes_while_an_evaluator_starts_is_no_failed_start(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """However many evaluators were about to start there."""
    with RayPool(spec, Placement(1, num_gpus=0)) as pool:
        for _ in range(5):
            [worker] = pool._workers
            pool._failed(
                worker,
                ActorUnavailableError(
                    "the node of the actor cannot be reached", worker.actor._actor_id.binary()
                ),
                None,
            )
            pool._fill()
        assert pool.faults.counts == {}
        assert [info.pid for info in pool.describe()]
        [worker] = pool._workers
        assert worker.number == 5


def test_a_back_off_outlasts_other_faults(local_cluster: LocalMachine, spec: EvaluatorSpec) -> None:
    """Starting again in haste what does not start would only cost the others their time."""
    policy = FaultPolicy(max_failed_starts=1, first_back_off_s=1000.0, longest_back_off_s=1000.0)
    with RayPool(spec, Placement(1, num_gpus=0), policy=policy) as pool:
        pool.describe()
        pool.placement = Placement(3, num_gpus=0)
        pool._next_fill = 0.0
        pool._fill()
        one, two, three = pool._workers
        pool._start_failed(two, OSError("the disk of this node is broken"))
        assert pool.faults.recent[-1].decision.startswith("the search goes on without it")
        pool._replace(three)
        pool._fill()
        assert pool._workers == [one]


def test_evaluators_that_fit_nowhere_any_more_are_not_waited_for(
    local_cluster: LocalMachine, spec: EvaluatorSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for on a node that has left is not asked for any longer."""
    here, gone = (
        Node("here", "10.0.0.1", 8, 8, 10**9, True),
        Node("gone", "10.0.0.2", 8, 64, 10**9, True),
    )
    monkeypatch.setattr("workers.pool.ray_pool.nodes", lambda: (here, gone))
    with RayPool(spec, Placement(None, num_gpus=4)) as pool:
        assert len(pool.states()) == 2 + 8
        monkeypatch.setattr("workers.pool.ray_pool.nodes", lambda: (here,))
        pool._next_fill = 0.0
        pool._fill()
        assert len(pool.states()) == 2


def test_as_many_as_fit(local_cluster: LocalMachine, spec: EvaluatorSpec) -> None:
    with RayPool(spec, Placement(None, num_gpus=0, num_cpus=4)) as pool:
        assert len(pool.describe()) == 2


@pytest.mark.parametrize(("count", "gpus"), [(4, 1), (2, 2)], ids=["four with one", "two pairs"])
def test_each_evaluator_sees_its_own_gpus(
    local_cluster: LocalMachine, spec: EvaluatorSpec, count: int, gpus: int
) -> None:
    with RayPool(spec, Placement(count, num_gpus=gpus)) as pool:
        seen = [info.visible_gpus for info in pool.describe()]
    assert all(len(own) == gpus for own in seen)
    assert len({gpu for own in seen for gpu in own}) == count * gpus


def test_what_evaluators_log_is_in_our_log(
    local_cluster: LocalMachine, spec: EvaluatorSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and with who said it and where."""
    with caplog.at_level(logging.INFO), RayPool(spec, Placement(1, num_gpus=1)) as pool:
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


def test_a_task_for_another_order_is_refused(spec: EvaluatorSpec) -> None:
    evaluator = Evaluator(spec)
    stored = ChannelOrder.as_stored(evaluator.dense.geometry)
    evaluator.set_order(stored)
    evaluator.set_order(stored)
    with pytest.raises(ValueError, match="the task is for channel order other"):
        evaluator.run(ScoreTask("block", 0, DENSE.text, (None,), "other"))


@pytest.mark.parametrize("before", ["l1", "activation"])
def test_weights_are_sorted_again_for_another_search(
    spec: EvaluatorSpec, before: Importance
) -> None:
    """Whatever searches came before on the same evaluator: orders and scores are those of a fresh
    one, to the bit.
    """
    removals = (Removal("mlp_channels", 1, 8), Removal("attention_heads", 0, 1), None)

    def search(
        evaluator: Evaluator, importance: Importance, set_name: str
    ) -> tuple[ChannelOrder, object]:
        order = evaluator.run(OrderTask(importance, set_name))
        assert isinstance(order, ChannelOrder)
        evaluator.set_order(order)
        result = evaluator.run(ScoreTask("block", 0, DENSE.text, removals, order.fingerprint))
        assert isinstance(result, ScoreResult)
        return order, result.nll

    used = Evaluator(spec)
    first, _ = search(used, before, "width")
    again, nll = search(used, "activation", "block")
    fresh, fresh_nll = search(Evaluator(spec), "activation", "block")
    assert first.fingerprint != again.fingerprint == fresh.fingerprint
    assert nll == fresh_nll
    back = used.run(ScoreTask("block", 0, DENSE.text, removals, again.fingerprint))
    assert isinstance(back, ScoreResult)
    assert back.nll == nll


def test_sorting_never_reaches_the_checkpoint_on_disk(spec: EvaluatorSpec) -> None:
    """Weights are mapped from their file and sorted in place: the file must stay what it was."""
    before = spec.checkpoint.fingerprint()
    evaluator = Evaluator(spec)
    order = evaluator.run(OrderTask("l1"))
    assert isinstance(order, ChannelOrder)
    stored = [parameter.clone() for parameter in evaluator.dense.model.parameters()]
    evaluator.set_order(order)
    assert any(
        (was != now).any()
        for was, now in zip(stored, evaluator.dense.model.parameters(), strict=True)
    ), "nothing was sorted"
    assert spec.checkpoint.fingerprint() == before
