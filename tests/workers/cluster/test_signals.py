"""Signals while a Ray is started or left, without one."""

from __future__ import annotations

import os
import signal

import pytest

from workers.cluster.signals import deferred_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


def test_they_come_at_the_end() -> None:
    got: list[int] = []
    for number in BOTH:
        signal.signal(number, lambda number, _frame: got.append(number))
    with deferred_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert got == []
    assert got == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGINT in what a shell starts in the background, whatever Ray sets meanwhile."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signals():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such a one, `getsignal` gives None, which `signal` does not take back."""
    before = signal.getsignal(signal.SIGTERM)
    real = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number)
    )
    with deferred_signals():
        assert real(signal.SIGTERM) is before
        assert real(signal.SIGINT) is not signal.default_int_handler
    assert real(signal.SIGTERM) is before
