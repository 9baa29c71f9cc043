"""Errors of a tracking server: which of them another attempt may mend."""

from __future__ import annotations

from typing import Any

_TEMPORARY = (408, 409, 425, 429)
"""Time-out, conflict with another client, too early, too many requests."""


class Refused(RuntimeError):
    """A server will never take what it was sent."""


def is_refusal(error: Exception) -> bool:
    """Whether the server will never take what it was sent: a run that is deleted, a value above a
    limit, a user without permission.

    That is HTTP's 4xx, which MLflow has for its error codes without a server, too. What exists
    already is none: two searches made the same experiment, and the next attempt finds it.
    """
    status = _http_status(error)
    exists = getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"
    refused = status is not None and 400 <= status < 500 and status not in _TEMPORARY
    return isinstance(error, Refused) or (refused and not exists)


def _http_status(error: Exception) -> int | None:
    response: Any = getattr(error, "response", None)  # of requests, where artifacts are sent
    if response is not None:
        return int(response.status_code)
    of_mlflow: Any = getattr(error, "get_http_status_code", None)
    return None if of_mlflow is None else int(of_mlflow())
