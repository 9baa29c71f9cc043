from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pruning.errors import InputError
from workers.cluster.machine import LocalMachine, Node
from workers.cluster.placement import Placement, place_locally


def place(
    machine: LocalMachine,
    *,
    evaluators: int | None = None,
    gpus: int | None = None,
    cpus: int = 1,
    evaluator_bytes: int = 10**9,
) -> Placement:
    return place_locally(
        machine,
        num_evaluators=evaluators,
        num_gpus_per_evaluator=gpus,
        num_cpus_per_evaluator=cpus,
        evaluator_bytes=evaluator_bytes,
        start_timeout_s=1,
        stall_timeout_s=2,
    )


BOX = LocalMachine(num_cpus=64, num_gpus=8, free_bytes=200 * 10**9)
LAPTOP = LocalMachine(num_cpus=8, num_gpus=0, free_bytes=16 * 10**9)


def test_one_per_gpu_else_one_per_core() -> None:
    assert (place(BOX).num_evaluators, place(BOX).num_gpus) == (8, 1)
    assert (place(LAPTOP).num_evaluators, place(LAPTOP).num_gpus) == (8, 0)
    assert (place(BOX, gpus=0).num_evaluators, place(BOX, gpus=0).num_gpus) == (64, 0)
    assert place(LAPTOP, cpus=2).num_evaluators == 4


def test_pairs_of_gpus() -> None:
    assert place(BOX, gpus=2) == Placement(4, 2, 1, start_timeout_s=1, stall_timeout_s=2)
    assert place(BOX, gpus=3, evaluators=2).num_evaluators == 2


def test_memory_limits_the_default() -> None:
    assert place(LAPTOP, evaluator_bytes=5 * 10**9).num_evaluators == 3
    assert place(LAPTOP, evaluator_bytes=50 * 10**9).num_evaluators == 1


def test_more_than_memory_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert place(LAPTOP, evaluators=4, evaluator_bytes=5 * 10**9).num_evaluators == 4
    assert "16.0 GB are free" in caplog.text
    assert "cluster.num_evaluators=3 would fit" in caplog.text


@pytest.mark.parametrize(
    ("machine", "evaluators", "gpus", "message"),
    [
        (
            BOX,
            9,
            None,
            "9 evaluators with 1 GPU each asked for; this machine has 8 GPU. Ask for at most 8",
        ),
        (
            BOX,
            5,
            2,
            "5 evaluators with 2 GPU each asked for; this machine has 8 GPU. Ask for at most 4",
        ),
        (LAPTOP, None, 1, "evaluators with 1 GPU each asked for; this machine has 0 GPU"),
        (BOX, None, 16, "16 GPU each asked for; this machine has 8 GPU"),
    ],
)
def test_more_gpus_than_there_are(
    machine: LocalMachine, evaluators: int | None, gpus: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place(machine, evaluators=evaluators, gpus=gpus)


def node(cpus: int, gpus: int, memory: int, alive: bool = True) -> Node:
    return Node("id", "10.0.0.1", cpus, gpus, memory, alive)


def test_as_many_as_fit_on_the_living_nodes() -> None:
    nodes = [node(64, 8, 500), node(64, 8, 500, alive=False), node(4, 3, 50), node(16, 0, 100)]
    assert Placement(None, num_gpus=1, num_cpus=2).wanted(nodes) == 8 + 2
    assert Placement(None, num_gpus=2).wanted(nodes) == 4 + 1
    assert Placement(None, num_gpus=0, num_cpus=4, memory_bytes=50).wanted(nodes) == 10 + 1 + 2
    assert Placement(5, num_gpus=1).wanted(nodes) == 5
    assert Placement(None, num_gpus=9).wanted(nodes) == 0, "an evaluator never spans two nodes"


@pytest.mark.parametrize(
    ("placement", "nodes", "words"),
    [
        (
            Placement(None, num_gpus=1),
            [node(64, 0, 2 * 10**9), node(64, 0, 2 * 10**9), node(8, 8, 10**9, alive=False)],
            "each asks for 1 GPU and 1 CPU; 2 nodes offer 0 GPU, 64 CPU and 2.0 GB of "
            "memory; set cluster.num_gpus_per_evaluator=0 to score on CPUs, or add nodes that "
            "have it",
        ),
        (
            Placement(2, num_gpus=8, num_cpus=32),
            [node(16, 4, 10**9), node(8, 0, 10**9)],
            "each asks for 8 GPU and 32 CPU; 1 node offers 4 GPU, 16 CPU and 1.0 GB of "
            "memory, 1 node offers 0 GPU, 8 CPU and 1.0 GB of memory; set "
            "cluster.num_gpus_per_evaluator=4 at most, or set cluster.num_cpus_per_evaluator=16 "
            "at most, or add nodes that have it",
        ),
        (
            Placement(None, num_gpus=0, memory_bytes=30 * 10**9),
            [node(16, 0, 16 * 10**9)],
            "each asks for 0 GPU and 1 CPU and 30.0 GB of memory; 1 node offers 0 GPU, "
            "16 CPU and 16.0 GB of memory; add nodes that have it",
        ),
        (
            Placement(None, num_gpus=1),
            [],
            "each asks for 1 GPU and 1 CPU; the cluster has no nodes; add nodes that have it",
        ),
    ],
    ids=["no GPUs", "too few", "too little memory", "nothing"],
)
def test_what_is_missing_and_what_to_set(
    placement: Placement, nodes: list[Node], words: str
) -> None:
    assert placement.shortfall(nodes) == words
    assert placement.shortfall([*nodes, node(64, 8, 100 * 10**9)]) is None


def test_what_an_actor_asks_for() -> None:
    options = Placement(1, num_gpus=2, num_cpus=3, memory_bytes=7).actor_options()
    assert options == {
        "num_gpus": 2,
        "num_cpus": 3,
        "memory": 7,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    assert Placement(1, num_gpus=2).describe() == "2 GPU and 1 CPU"
    assert (
        Placement(1, num_gpus=0, memory_bytes=2 * 10**9).describe()
        == "0 GPU and 1 CPU and 2.0 GB of memory"
    )


def test_torch_is_asked_for_gpus_only_where_a_driver_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("workers.cluster.machine._DEVICES", tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    (tmp_path / "nvme0").touch()
    assert LocalMachine.detect().num_gpus == 0
    (tmp_path / "nvidiactl").touch()
    assert LocalMachine.detect().num_gpus == 3
    assert LocalMachine.detect(num_gpus=5).num_gpus == 5


H100 = {"ray.io/accelerator-type": "H100", "zone": "a"}


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ({}, True),
        ({"ray.io/accelerator-type": "H100"}, True),
        ({"ray.io/accelerator-type": "A100"}, False),
        ({"ray.io/accelerator-type": "!A100"}, True),
        ({"ray.io/accelerator-type": "!H100"}, False),
        ({"ray.io/accelerator-type": "in(A100, H100)"}, True),
        ({"ray.io/accelerator-type": "!in(A100,H100)"}, False),
        ({"ray.io/accelerator-type": "H100", "zone": "b"}, False),
        ({"rack": "1"}, False),
        ({"rack": "!1"}, True),
    ],
    ids=str,
)
def test_nodes_are_chosen_by_their_labels(selector: dict[str, str], fits: bool) -> None:
    """As Ray's documentation says that it chooses them."""
    placement = Placement(None, 1, label_selector=selector)
    node = Node("id", "10.0.0.1", 8, 4, 10**9, True, H100)
    assert placement.wanted([node]) == (4 if fits else 0)
    assert placement.actor_options().get("label_selector", {}) == selector


def test_no_node_has_the_labels() -> None:
    node = Node("id", "10.0.0.1", 8, 4, 10**9, True, H100 | {"ray.io/node-id": "xyz"})
    placement = Placement(None, 1, label_selector={"zone": "in(b,c)"})
    assert placement.shortfall([node]) == (
        "each asks for 1 GPU and 1 CPU on a node with zone: in(b,c); nodes have "
        "ray.io/accelerator-type: H100, zone: a; change cluster.label_selector, or add nodes that "
        "have it"
    )
