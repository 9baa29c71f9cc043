"""Ray's exceptions as faults of the pool."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from workers.pool.faults import FaultKind


def cause_of(error: RayError) -> Exception:
    """What an evaluator raised, if it did; else what Ray says."""
    cause: Exception = error.cause if isinstance(error, RayTaskError) else error
    return cause


def fault_kind(error: RayError, node_id: str) -> FaultKind:
    """What happened to an evaluator that was at work on a node."""
    if isinstance(cause_of(error), OutOfMemoryError):
        return "out of memory"
    if isinstance(error, RayTaskError):
        return "task error"
    return "node lost" if _node_is_gone(error, node_id) else "evaluator lost"


def lost_its_node(error: RayError) -> bool:
    """Of an evaluator that has not started.

    Ray places actors on a dead node until it knows that it is dead, and no start failed there.
    """
    return isinstance(error, ActorUnavailableError) or any(
        words in str(error) for words in ("never ran", "node has died")
    )


def replies(references: Sequence[Any]) -> list[Any]:
    """What came for each reference, or the error that Ray reports instead; all by one call where
    none failed, as each call takes its time.
    """
    try:
        return list(ray.get(list(references)))
    except RayError:
        return [_reply(reference) for reference in references]


def _reply(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        return error


def first_line(error: Exception) -> str:
    """What happened to a process, without the addresses that Ray lists below it."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """The exception at the end of a remote traceback."""
    return _lines(error)[-1]


def _node_is_gone(error: RayError, node_id: str) -> bool:
    """Ray declares a node dead after 15 s of silence at the earliest.

    Until then what ran there is unavailable, and its raylet cannot be reached.
    """
    alive = [node for node in ray.nodes() if node["NodeID"] == node_id and node["Alive"]]
    if not alive or "node has died" in str(error):
        return True
    address, port = alive[0]["NodeManagerAddress"], alive[0]["NodeManagerPort"]
    return isinstance(error, ActorUnavailableError) and not _listens(address, port)


def _listens(address: str, port: int) -> bool:
    """Whether something listens on that port."""
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def _lines(error: Exception) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines or [type(error).__name__]
