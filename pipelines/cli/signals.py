"""Ctrl-C and SIGTERM, which docker stop, Kubernetes and Slurm send: a command ends with one line.

Imports nothing that takes time, so that it is there before what does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], Any]


class Interruption:
    """While it is entered, a signal raises KeyboardInterrupt, and then no other until that one is
    handled: what it interrupts gets the time to put its things in order.

    `str` says what happened, for the person who reads the error.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        self._before: Mapping[int, Any] = {}
        self._told = False

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {name}"

    @property
    def status(self) -> int:
        """The exit status, by the convention of shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number

    def __enter__(self) -> Self:
        self._before = _handle(self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _: FrameType | None) -> None:
        if _is_interrupt(sys.exception()):
            if not self._told:
                _write("stopping already; what was computed is kept\n")
            self._told = True
            return
        self.number = number
        raise KeyboardInterrupt


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Around a whole command, its imports first: a signal ends the process at once, with one line.

    Nothing is there yet that could be lost; a KeyboardInterrupt would be a traceback, and some
    imports swallow it. A job is inside an `Interruption` instead. After the command, while Python
    ends, a signal ends it with the command's own status. The handlers stay.
    """

    def interrupted(number: int, _: FrameType | None) -> None:
        received = Interruption(number)
        _write(f"error: {received}\n")
        os._exit(received.status)

    _handle(interrupted)
    status = 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more
            sys.stdout.flush()
        _handle(lambda *_: os._exit(status))


def _handle(handler: _Handler) -> dict[int, Any]:
    """Sets it, but for signals that whoever started the process wants ignored (nohup, a shell's
    background); returns the handlers before.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _NUMBERS}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    return before


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a KeyboardInterrupt is being handled, be it behind an error of its handling."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _write(text: str) -> None:
    """Past Python's buffers, which a handler may have interrupted."""
    with suppress(OSError):
        os.write(1, text.encode())
