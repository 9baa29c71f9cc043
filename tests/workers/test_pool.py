from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoint import Checkpoint
from pruning.errors import InputError
from pruning.importance import ChannelOrder
from pruning.shape import ModelShape, Removal
from tests.workers.evaluators import Broken, Poison
from workers.evaluator import Evaluator
from workers.faults import FaultPolicy, WorkersLost
from workers.inline import InlinePool
from workers.placement import LocalMachine, Placement
from workers.pool import Pool, RayPool
from workers.tasks import EvaluatorSpec, OrderTask, Result, ScoreResult, ScoreTask

pytestmark = pytest.mark.ray

DENSE = ModelShape.dense(4, 3, 48)
REMOVALS = tuple(Removal("attention", layer, 0) for layer in range(4)) + tuple(Removal("mlp_channels", layer, 32) for layer in range(4))


def tasks(order: ChannelOrder, repeats: int = 1) -> list[ScoreTask]:
    return [ScoreTask("block", batch, DENSE.text, REMOVALS[part::2], order.fingerprint) for batch in range(4) for part in range(2)] * repeats


def scores(pool: Pool, repeats: int = 1) -> list[object]:
    """Results in task order. Every task must be answered exactly once."""
    [(_, order)] = pool.run([OrderTask("l1")])
    assert isinstance(order, ChannelOrder)
    pool.set_order(order)
    wanted = tasks(order, repeats)
    return _collect(pool.run(wanted), len(wanted))


def _collect(results: Iterator[tuple[int, Result]], count: int) -> list[object]:
    found: dict[int, object] = {}
    for index, result in results:
        assert index not in found
        assert isinstance(result, ScoreResult)
        found[index] = result.nll
    assert sorted(found) == list(range(count))
    return [found[index] for index in range(count)]


def _wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "evaluators are left after the pool closed"


@pytest.fixture
def expected(spec: EvaluatorSpec) -> list[object]:
    return scores(InlinePool(spec))


@pytest.mark.parametrize("num_evaluators", [1, 2, 3])
def test_same_bytes_for_any_number_of_evaluators(local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[object], num_evaluators: int) -> None:
    with RayPool(spec, Placement(num_evaluators, num_gpus=0)) as pool:
        assert scores(pool) == expected
        infos = pool.describe()
    assert [(info.visible_gpus, info.num_threads, info.device) for info in infos] == [((), 1, "cpu")] * num_evaluators
    pids = {info.pid for info in infos}
    assert len(pids) == num_evaluators
    _wait_until_gone(pids)


def test_a_killed_evaluator_costs_nothing_but_time(local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[object]) -> None:
    """SIGKILL in the middle of a step, twice."""
    with RayPool(spec, Placement(2, num_gpus=0)) as pool:
        [(_, order)] = pool.run([OrderTask("l1")])
        assert isinstance(order, ChannelOrder)
        pool.set_order(order)
        victims = [info.pid for info in pool.describe()]
        wanted = tasks(order, repeats=8)
        results = pool.run(wanted)
        found: dict[int, object] = {}
        for index, result in results:
            assert isinstance(result, ScoreResult)
            assert index not in found
            found[index] = result.nll
            if len(found) in (5, 20):
                os.kill(victims.pop(), signal.SIGKILL)
        assert pool.num_lost == 2
        assert [found[index] for index in range(len(wanted))] == expected * 8
        assert len(pool.describe()) == 2


def test_a_hung_evaluator_is_replaced(local_cluster: LocalMachine, spec: EvaluatorSpec, expected: list[object]) -> None:
    """SIGSTOP: nobody reports it but the task's own time-out."""
    with RayPool(spec, Placement(2, num_gpus=0), task_timeout_s=5) as pool:
        os.kill(pool.describe()[0].pid, signal.SIGSTOP)
        assert scores(pool) == expected
        assert pool.num_lost == 1


@pytest.mark.parametrize(("evaluator", "message"), [(Poison, "failed 2 times.*block batch 2"), (Broken, "failed 2 times.*shapes cannot be multiplied")])
def test_a_poison_task_does_not_kill_for_ever(local_cluster: LocalMachine, spec: EvaluatorSpec, evaluator: type[Evaluator], message: str) -> None:
    with RayPool(spec, Placement(1, num_gpus=0), policy=FaultPolicy(max_lost_per_task=2), kind=evaluator) as pool, pytest.raises(WorkersLost, match=message):
        scores(pool)


def test_bad_input_found_by_an_evaluator_is_not_tried_again(local_cluster: LocalMachine, spec: EvaluatorSpec, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((spec.checkpoint.folder / "config.json").read_text())
    pool = RayPool(replace(spec, checkpoint=Checkpoint(tmp_path)), Placement(1, num_gpus=0))
    with pool, pytest.raises(InputError, match="no \\*.safetensors"):
        pool.device()


def test_a_start_that_never_comes_says_what_was_asked_and_what_there_is(local_cluster: LocalMachine, spec: EvaluatorSpec) -> None:
    pool = RayPool(spec, Placement(1, num_gpus=64, start_timeout_s=3))
    with pool, pytest.raises(WorkersLost, match=r"within 3 s. Each asks for 64 GPU and 1 CPU; the cluster has 8 GPU and 8 CPU on 1 node"):
        pool.device()


@pytest.mark.parametrize(("count", "gpus"), [(4, 1), (2, 2)], ids=["four with one", "two pairs"])
def test_each_evaluator_sees_its_own_gpus(local_cluster: LocalMachine, spec: EvaluatorSpec, count: int, gpus: int) -> None:
    with RayPool(spec, Placement(count, num_gpus=gpus)) as pool:
        seen = [info.visible_gpus for info in pool.describe()]
    assert all(len(own) == gpus for own in seen)
    assert len({gpu for own in seen for gpu in own}) == count * gpus


def test_a_task_for_another_order_is_refused(spec: EvaluatorSpec) -> None:
    evaluator = Evaluator(spec)
    stored = ChannelOrder.as_stored(evaluator.geometry)
    evaluator.set_order(stored)
    evaluator.set_order(stored)
    with pytest.raises(ValueError, match="the task is for channel order other"):
        evaluator.run(ScoreTask("block", 0, DENSE.text, (None,), "other"))
    with pytest.raises(ValueError, match="sorted already"):
        evaluator.run(OrderTask("l1"))


def test_sorting_never_reaches_the_checkpoint_on_disk(spec: EvaluatorSpec) -> None:
    """Weights are mapped from their file and sorted in place: the file must stay what it was."""
    before = spec.checkpoint.fingerprint()
    evaluator = Evaluator(spec)
    order = evaluator.run(OrderTask("l1"))
    assert isinstance(order, ChannelOrder)
    stored = [parameter.clone() for parameter in evaluator.model.parameters()]
    evaluator.set_order(order)
    assert any((was != now).any() for was, now in zip(stored, evaluator.model.parameters(), strict=True)), "nothing was sorted"
    assert spec.checkpoint.fingerprint() == before
