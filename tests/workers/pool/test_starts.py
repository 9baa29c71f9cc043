"""Evaluators that do not start, or have nowhere to start."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from tests.workers.pool.misbehaving import (
    FailsToStart,
    FailsToStartAfterTheFirst,
    FailsToStartTwice,
)
from tests.workers.pool.scoring import Scores, prepare, score, search, steps
from workers.cluster.machine import LocalMachine, Node
from workers.cluster.placement import Placement
from workers.pool.faults import FaultPolicy, WorkersLost
from workers.pool.ray_pool import RayPool
from workers.tasks import EvaluatorSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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


def test_another_torch_on_a_node_is_refused(
    local_cluster: LocalMachine, spec: EvaluatorSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pool.ray_pool.torch.__version__", "1.0.0")
    with (
        RayPool(spec, Placement(1, num_gpus=0)) as pool,
        pytest.raises(InputError, match=r"torch 2\.\d+\.\d+ on .*, 1.0.0 here: install the same"),
    ):
        list(pool.wait())


@pytest.mark.parametrize("count", [1, None], ids=["one", "as many as fit"])
def test_a_start_that_never_comes_says_what_was_asked_and_what_there_is(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    count: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once, and again when it has waited in vain."""
    with RayPool(spec, Placement(count, num_gpus=64, stall_timeout_s=3)) as pool:
        [said] = [record.getMessage() for record in caplog.records]
        assert re.fullmatch(
            r"cluster: no node can take an evaluator: each asks for 64 GPU and 1 CPU; 1 node "
            r"offers 8 GPU, 8 CPU and [\d.]+ GB of memory; set "
            r"cluster.num_gpus_per_evaluator=8 at most, or add nodes that have it. Waiting for "
            r"up to 3 s \(cluster.stall_timeout_s\)",
            said,
        ), said
        doing = "1 waiting for resources" if count else "none could be placed"
        message = (
            rf"no evaluator for 3 s \(cluster.stall_timeout_s\): {doing}. Each asks for 64 GPU "
            r"and 1 CPU; the cluster has 8 GPU and 8 CPU on 1 node"
        )
        with pytest.raises(WorkersLost, match=message):
            list(pool.wait())
    assert len(caplog.records) == 1, "it is said once"


def test_a_start_that_others_stand_in_the_way_of_says_so(
    local_cluster: LocalMachine,
    spec: EvaluatorSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("workers.pool.stall._BUSY_S", 1.0)
    other = ray.remote(SomebodyElse).options(num_cpus=0, num_gpus=5).remote()
    ray.get(other.is_there.remote())
    try:
        pool = RayPool(spec, Placement(1, num_gpus=4, stall_timeout_s=4))
        with pool, pytest.raises(WorkersLost):
            list(pool.wait())
    finally:
        ray.kill(other)
    [said] = [record.getMessage() for record in caplog.records]
    assert said == (
        "cluster: no evaluator yet: each asks for 4 GPU and 1 CPU, of 8 GPU and 8 CPU on 1 node "
        "there are 3 GPU and 8 CPU free; others use the rest, or evaluators are slow to start. "
        "Waiting for up to 4 s (cluster.stall_timeout_s)"
    )


def test_gpus_that_torch_cannot_use_are_refused(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """Ray hands out GPUs by their numbers, whatever torch is there: it would score on the CPU."""
    pool = RayPool(spec, Placement(1, num_gpus=2))
    message = (
        r"cluster.num_gpus_per_evaluator: 2, and an evaluator on 127.0.0.1 got GPU \d,\d, but "
        r"torch \S+ there (is a build for CPUs|sees no CUDA device). Install a build of torch for "
        r"the GPUs on every node, or set 0 to score on CPUs"
    )
    with pool, pytest.raises(InputError, match=message):
        list(pool.wait())
    assert not pool.faults.counts, "it is not tried again"


class SomebodyElse:
    """Holds what it was given."""

    def is_there(self) -> bool:
        return True


def test_a_node_that_goes_while_an_evaluator_starts_is_no_failed_start(
    local_cluster: LocalMachine, spec: EvaluatorSpec
) -> None:
    """However many evaluators were about to start there."""
    with RayPool(spec, Placement(1, num_gpus=0)) as pool:
        for _ in range(5):
            [worker] = pool._workers
            gone = ActorUnavailableError(
                "the node of the actor cannot be reached", worker.actor._actor_id.binary()
            )
            pool._failed(worker, gone)
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
