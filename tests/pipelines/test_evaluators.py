"""Evaluators on a running cluster, as the configuration asks for them."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from pipelines import evaluators
from pipelines.config.groups import ClusterConfig
from pipelines.evaluators import joined
from workers.cluster.machine import LocalMachine

CLUSTER = ClusterConfig(
    kind="ray",
    address="auto",
    allow_open=False,
    num_evaluators=None,
    num_gpus=None,
    num_gpus_per_evaluator=8,
    num_cpus_per_evaluator=8,
    label_selector=None,
    join_timeout_s=10.0,
    start_timeout_s=10.0,
    stall_timeout_s=1800.0,
    task_timeout_s=10.0,
)


@pytest.mark.ray
def test_a_cluster_that_cannot_take_an_evaluator_is_told_when_it_is_joined(
    local_cluster: LocalMachine, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the model is read and the text is tokenised, which can take minutes."""
    with caplog.at_level(logging.WARNING), joined(CLUSTER):
        assert caplog.text == ""
    with caplog.at_level(logging.WARNING), joined(replace(CLUSTER, num_gpus_per_evaluator=9)):
        [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "cluster: no node can take an evaluator: each asks for 9 GPU and 8 CPU; 1 node offers 8 "
        "GPU, 8 CPU and "
    )
    assert said.endswith(
        "set cluster.num_gpus_per_evaluator=8 at most, or add nodes that have it. Waiting for up "
        "to 1800 s (cluster.stall_timeout_s)"
    )
    caplog.clear()
    with joined(replace(CLUSTER, label_selector={"zone": "a"})):
        [said] = [record.getMessage() for record in caplog.records]
    assert "8 GPU and 8 CPU on a node with zone: a; nodes have " in said


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_nothing_is_joined_for_evaluators_here(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "joined_ray", lambda *_, **__: pytest.fail("Ray is joined"))
    ran = False
    with joined(replace(CLUSTER, kind=kind)):
        ran = True
    assert ran
