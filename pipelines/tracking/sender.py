"""Calls to a server that may be slow or away, made in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

from pipelines.config.redaction import masked_url, without_secrets
from pipelines.tracking.refusal import is_refusal

log = logging.getLogger(__name__)

Call = Callable[[Any], object]
"""Takes the client of the server."""

_RETRY_S = (1.0, 5.0, 15.0, 30.0)
"""Pauses between attempts; the last one stays."""
_HURRY_S = 1.0
"""The longest pause once somebody waits for the end."""
_SILENT_S = 2.0
"""How long somebody waits before it is said what for."""
_STALLED_S = 15.0
"""How long somebody waits for a server that takes nothing."""
MAX_SAID = 5
"""Refusals that are told one by one."""


class Sender:
    """Makes calls one after the other in a thread of its own, each again until it succeeds or is
    refused for good.

    Args:
        uri: of the server, for messages.
        connect: makes the client that every call gets; tried again like a call.
    """

    def __init__(self, uri: str, connect: Callable[[], Any]) -> None:
        self._uri, self._connect = uri, connect
        self._calls: Queue[Call | None] = Queue()
        self._hurry, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._client: Any = None
        self._warned = False
        self._num_over = 0
        self.problem = ""
        """What the server did wrong last, without secrets; empty once a call succeeds."""
        self.refusals: list[str] = []
        """What the server will never take, in its words, without secrets; each once."""

    @property
    def num_waiting(self) -> int:
        """Calls that are still to be made."""
        return self._calls.qsize()

    @property
    def is_connected(self) -> bool:
        """Whether there ever was a client."""
        return self._client is not None

    def start(self) -> None:
        self._thread.start()

    def put(self, call: Call) -> None:
        """Returns at once."""
        self._calls.put(call)

    def finish(self, timeout_s: float) -> bool:
        """Waits for all calls, but not for a server that takes none; says so if it takes a while.

        False: they were not all made in time, and what is left is not.
        """
        self._calls.put(None)
        self._hurry.set()
        now = time.monotonic()
        until, said, num_over, since = now + timeout_s, now + _SILENT_S, -1, now
        while self._thread.is_alive() and now < min(until, since + _STALLED_S):
            self._thread.join(min(0.1, until - now))
            now = time.monotonic()
            if self._num_over != num_over:
                num_over, since = self._num_over, now
            if now >= said and self._thread.is_alive():
                self._say_waiting(until - now)
                said = until
        self._stop.set()
        return not self._thread.is_alive()

    def pause(self, seconds: float) -> bool:
        """For calls that wait for something; True: the time is up, so give up."""
        return self._stop.wait(seconds)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._make(call)
            self._num_over += 1

    def _make(self, call: Call) -> None:
        attempt, was_refused = 0, False
        while not self._stop.is_set():
            try:
                self._client = self._client or self._connect()
                call(self._client)
                self.problem = ""
                return
            # Whatever a tracking server does wrong must not reach the search.
            except Exception as error:  # noqa: BLE001
                reason = without_secrets(_first_line(error), self._uri)
                if is_refusal(error) and (was_refused or reason in self.refusals):
                    self._refused(reason)
                    return
                # Another client at the same moment may be the reason, so a refusal counts when it
                # comes twice.
                was_refused = is_refusal(error)
                if not was_refused:
                    self._failed(reason)
                self._wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1

    def _wait(self, seconds: float) -> None:
        if self._hurry.is_set():
            self._stop.wait(min(seconds, _HURRY_S))
        else:
            self._hurry.wait(seconds)

    def _refused(self, reason: str) -> None:
        self.problem = ""  # it answers
        if reason in self.refusals:
            return
        self.refusals.append(reason)
        if len(self.refusals) <= MAX_SAID:
            log.warning(
                "MLflow at %s refuses for good: %s; it is left out there",
                masked_url(self._uri),
                reason,
            )

    def _failed(self, reason: str) -> None:
        self.problem = reason
        if not self._warned:
            log.warning(
                "MLflow at %s: %s; the search goes on, sending is tried again",
                masked_url(self._uri),
                reason,
            )
        self._warned = True

    def _say_waiting(self, left_s: float) -> None:
        log.info(
            "waiting up to %.0f s for MLflow at %s (%.0f s if it takes nothing): %d calls left%s",
            left_s,
            masked_url(self._uri),
            _STALLED_S,
            max(0, self.num_waiting - 1),
            f" ({self.problem})" if self.problem else "",
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
