"""Signals while a Ray is started, joined or left: they wait until that is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from ray import _raylet
from ray._private import services, utils, worker


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM come at the end of the context: a Ray that is half there cannot be stopped
    in order, and an exception that Python raises while it forks is lost.

    What Ray starts hears of no signal for the process group: a raylet that dies before its driver
    ends the driver without a word. Ray's own handlers of SIGTERM never stay. Those in Python end
    the process; the one of its core worker, in C++, dumps a stack and aborts, and none is left when
    the core worker is shut down. Ray 2.60 has no option for any of this.
    """
    received: list[int] = []
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not None  # what C code set stays as it is
    }

    def receive(number: int, _frame: object) -> None:
        received.append(number)

    def set_all(handlers: dict[signal.Signals, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def defer() -> None:
        ignored = {number: each for number, each in before.items() if each is signal.SIG_IGN}
        set_all(dict.fromkeys(before, receive) | ignored)

    def then_defer(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            defer()
            try:
                return function(*args, **options)
            finally:
                defer()

        return called

    raylet: Any = _raylet
    driver: Any = worker
    popen: Any = services.ConsolePopen
    if utils.detect_fate_sharing_support():  # else Ray's reaper has to find them in one group
        popen = partial(popen, process_group=0)
    with (
        mock.patch.object(services, "ConsolePopen", popen),
        mock.patch.object(utils, "set_sigterm_handler"),
        mock.patch.object(raylet, "CoreWorker", then_defer(raylet.CoreWorker)),
        # What `ray.shutdown` calls first when the core worker is gone.
        mock.patch.object(driver, "FunctionActorManager", then_defer(driver.FunctionActorManager)),
    ):
        defer()
        try:
            yield
        finally:
            set_all(before)
            for number in received[:1]:
                signal.raise_signal(number)
