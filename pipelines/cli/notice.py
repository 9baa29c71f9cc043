"""A message to a webhook when a long command ends, fails or is stopped.

The address is in an environment variable and nowhere else: it is a secret, and options are saved,
logged and sent to MLflow.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from pipelines.cli.commands import PROGRAM
from pipelines.cli.console import duration
from pipelines.config.redaction import MASK, without_secrets
from pruning.errors import InputError

log = logging.getLogger(__name__)

VARIABLE = "MULTIPRUNER_NOTIFY_URL"

COMMANDS = ("prune", "sweep", "evaluate", "reproduce", "latency", "recover")
"""Those that may take hours."""

End = Literal["done", "failed", "stopped"]

_ATTEMPTS, _WAIT_S, _TIMEOUT_S = 3, 2.0, 5.0
"""A command that is stopped tries once: who stopped it kills it after some seconds."""


@dataclass(slots=True)
class Notice:
    """Tells the webhook of one command; does nothing where none is set.

    Args:
        command: its name.
        secrets: addresses whose passwords no message may hold.
        url: of the webhook.

    Raises:
        InputError: the variable holds no address of a web server.
    """

    command: str
    secrets: Sequence[str] = ()
    url: str = field(default_factory=lambda: os.environ.get(VARIABLE, ""), repr=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            self.url = ""
        elif self.url and not _is_web(self.url):
            raise InputError(
                f"{VARIABLE}: not the address of a web server; give one that begins with https:// "
                "or http://, or unset it"
            )

    @contextmanager
    def sent_after(self, end: End, message: str) -> Iterator[None]:
        """Sends when the block ends: the person at the terminal reads of it first, and whoever
        presses Ctrl-C then has read it.
        """
        try:
            yield
        finally:
            with suppress(KeyboardInterrupt):
                self.send(end, message)

    def send(self, end: End, message: str, found: object = None) -> None:
        """Never fails: what the webhook does not take is a warning.

        Args:
            message: of the error, as the person at the terminal reads it.
            found: what the job returned.
        """
        if not self.url:
            return
        attempts = Retrying(
            stop=stop_after_attempt(1 if end == "stopped" else _ATTEMPTS),
            wait=wait_fixed(_WAIT_S),
            retry=retry_if_exception_type((OSError, HTTPException)),
            reraise=True,
        )
        try:
            request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
                self.url,
                json.dumps(self._body(end, message, found), default=str).encode(),
                {"Content-Type": "application/json", "User-Agent": PROGRAM},
            )
            attempts(_post, request)
        except Exception as error:  # noqa: BLE001 - the command is done, whatever this meets
            log.warning("%s: %s did not take the message: %s", VARIABLE, self._host, _said(error))

    @property
    def _host(self) -> str:
        """All of the address that is no secret."""
        return urlsplit(self.url).hostname or "the webhook"

    def _body(self, end: End, message: str, found: object) -> dict[str, Any]:
        """`text` is for people, as chat services show it; the rest is for programs."""
        seconds = time.monotonic() - self._started
        summary = found if isinstance(found, Mapping) else {}
        for address in (*self.secrets, self.url):
            message = without_secrets(message, address).replace(self.url, MASK)
        lines = [f"{PROGRAM} {self.command} {end} after {duration(seconds)} on {_node()}"]
        lines += _of_search(summary)
        lines += message.splitlines()
        if folder := summary.get("output_dir"):
            lines.append(f"in {folder}")
        return {
            "text": "\n".join(lines),
            "command": self.command,
            "end": end,
            "seconds": round(seconds, 1),
            "node": _node(),
            "message": message,
            "output_dir": summary.get("output_dir"),
        }


def _of_search(summary: Mapping[str, Any]) -> list[str]:
    """What a search came to, in one line; nothing for what is not the summary of one."""
    perplexities = summary.get("perplexity")
    if not isinstance(perplexities, Mapping) or "ratio" not in summary:
        return []
    texts = [
        f"{name} perplexity {each['dense']:.2f} to {each['pruned']:.2f}"
        for name, each in perplexities.items()
        if name == "heldout" and None not in each.values()
    ]
    gone = f"{summary.get('model', 'model')}: {100 * summary['ratio']:.1f} % of the parameters gone"
    return [", ".join([gone, *texts])]


def _post(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
        pass


def _said(error: Exception) -> str:
    """Without the address, which messages of libraries quote."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or type(reason).__name__


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _node() -> str:
    return socket.gethostname()
