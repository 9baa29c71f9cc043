"""Ray's exceptions as faults of the pool."""

from __future__ import annotations

import socket

from ray.exceptions import ActorUnavailableError, RayError


def lost_its_node(error: RayError) -> bool:
    """Of an evaluator that has not started.

    Ray places actors on a dead node until it knows that it is dead, and no start failed there.
    """
    return isinstance(error, ActorUnavailableError) or any(
        words in str(error) for words in ("never ran", "node has died")
    )


def listens(address: str, port: int) -> bool:
    """Whether something listens on that port."""
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def first_line(error: Exception) -> str:
    """What happened to a process, without the addresses that Ray lists below it."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """The exception at the end of a remote traceback."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
