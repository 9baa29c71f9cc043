"""Evaluators as the configuration asks for them: in this process, on this machine, on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pipelines.config.groups import ClusterConfig
from pruning.errors import InputError
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement, place_locally
from workers.cluster.ray_session import joined_ray, local_ray
from workers.cluster.resources import nodes
from workers.evaluators.shapes import Evaluator
from workers.pool.inline_pool import InlinePool
from workers.pool.protocol import EvaluatorKind, Pool, Spec
from workers.pool.ray_pool import RayPool
from workers.pool.stall import StallWatch


@contextmanager
def joined(cluster: ClusterConfig) -> Iterator[None]:
    """The running cluster that the configuration names, joined; nothing to do for other kinds.

    A warning says at once if no node of it could take an evaluator.

    Raises:
        InputError: it cannot be joined.
    """
    if cluster.kind != "ray":
        yield
        return
    assert cluster.address is not None
    with joined_ray(
        cluster.address, allow_open=cluster.allow_open, timeout_s=cluster.join_timeout_s
    ):
        StallWatch(_placement(cluster, memory_bytes=0)).look_at(nodes())
        yield


def find_placement(
    cluster: ClusterConfig, machine: LocalMachine, evaluator_bytes: int
) -> Placement | None:
    """Where evaluators go; None: they stay in this process.

    Args:
        evaluator_bytes: memory that one of them needs.

    Raises:
        InputError: they do not fit.
    """
    gpus = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator)
    if cluster.kind != "ray":
        machine.require_cores(cluster.num_cpus_per_evaluator)
    if cluster.kind == "inline":
        if gpus > machine.num_gpus:
            raise InputError(
                f"cluster.num_gpus_per_evaluator: {gpus}; this machine has {machine.num_gpus} GPU"
            )
        return None
    if cluster.kind == "ray":
        return _placement(cluster, memory_bytes=0 if gpus else evaluator_bytes)
    return place_locally(
        machine,
        num_evaluators=cluster.num_evaluators,
        num_gpus_per_evaluator=cluster.num_gpus_per_evaluator,
        num_cpus_per_evaluator=cluster.num_cpus_per_evaluator,
        evaluator_bytes=evaluator_bytes,
        start_timeout_s=cluster.start_timeout_s,
        stall_timeout_s=cluster.stall_timeout_s,
    )


def local_session(
    machine: LocalMachine, placement: Placement | None
) -> AbstractContextManager[None]:
    """One Ray of our own for several pools, one after the other, where a Ray is needed and none is
    joined.
    """
    return (
        nullcontext()
        if placement is None
        else local_ray(_num_cpus(machine, placement), machine.num_gpus)
    )


@contextmanager
def open_pool(
    cluster: ClusterConfig,
    machine: LocalMachine,
    placement: Placement | None,
    spec: Spec,
    kind: EvaluatorKind = Evaluator,
    *,
    run: str | None,
) -> Iterator[Pool]:
    """Evaluators, for the time of the context.

    Args:
        placement: of `find_placement`.
        kind: their class.
        run: the folder that they work for, after which Ray's dashboard calls them.
    """
    if placement is None:
        num_gpus = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator)
        with InlinePool(spec, kind=kind, num_gpus=num_gpus) as inline:
            yield inline
        return
    # A cluster that was joined before is used as it is: local_ray starts one only where there is
    # none.
    name = Path(run).name if run else ""
    timeout_s = cluster.task_timeout_s
    with (
        local_session(machine, placement),
        RayPool(spec, placement, task_timeout_s=timeout_s, kind=kind, name=name) as pool,
    ):
        yield pool


def _placement(cluster: ClusterConfig, *, memory_bytes: int) -> Placement:
    """On a running cluster."""
    assert cluster.num_gpus_per_evaluator is not None
    return Placement(
        cluster.num_evaluators,
        cluster.num_gpus_per_evaluator,
        cluster.num_cpus_per_evaluator,
        memory_bytes=memory_bytes,
        label_selector={
            str(name): str(value) for name, value in (cluster.label_selector or {}).items()
        },
        start_timeout_s=cluster.start_timeout_s,
        stall_timeout_s=cluster.stall_timeout_s,
    )


def _num_cpus(machine: LocalMachine, placement: Placement) -> int:
    return max(machine.num_cpus, (placement.num_evaluators or 1) * placement.num_cpus)
