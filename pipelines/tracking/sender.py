"""Calls to a server that may be slow or away, made in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

from pipelines.config.redaction import masked_url, without_secrets

log = logging.getLogger(__name__)

Call = Callable[[Any], object]
"""Takes the client of the server."""

_RETRY_S = (1.0, 5.0, 15.0, 30.0)
"""Pauses between attempts; the last one stays."""


class Sender:
    """Makes calls one after the other in a thread of its own, each again until it succeeds.

    Args:
        uri: of the server, for messages.
        connect: makes the client that every call gets; tried again like a call.
    """

    def __init__(self, uri: str, connect: Callable[[], Any]) -> None:
        self._uri, self._connect = uri, connect
        self._calls: Queue[Call | None] = Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._warned = False
        self.problem = ""
        """What the server did wrong last, without secrets; empty once a call succeeds."""

    @property
    def num_waiting(self) -> int:
        """Calls that are still to be made."""
        return self._calls.qsize()

    def start(self) -> None:
        self._thread.start()

    def put(self, call: Call) -> None:
        """Returns at once."""
        self._calls.put(call)

    def finish(self, timeout_s: float) -> bool:
        """Waits for all calls; False: they were not all made in time, and what is left is not."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self._stop.set()
        return False

    def pause(self, seconds: float) -> bool:
        """For calls that wait for something; True: the time is up, so give up."""
        return self._stop.wait(seconds)

    def _run(self) -> None:
        client: Any = None
        while (call := self._calls.get()) is not None:
            attempt = 0
            while not self._stop.is_set():
                try:
                    client = client or self._connect()
                    call(client)
                    self.problem = ""
                    break
                # Whatever a tracking server does wrong must not reach the search.
                except Exception as error:  # noqa: BLE001
                    self._failed(error)
                    self._stop.wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                    attempt += 1

    def _failed(self, error: Exception) -> None:
        self.problem = without_secrets(_first_line(error), self._uri)
        if not self._warned:
            log.warning(
                "MLflow at %s: %s; the search goes on, sending is tried again",
                masked_url(self._uri),
                self.problem,
            )
        self._warned = True


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
