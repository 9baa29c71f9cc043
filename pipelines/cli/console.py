"""What a person sees: log lines, one progress bar, one table."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Self

from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


_REPORTED_ONCE = "urllib3"  # what it would warn of, whoever called it reports once
_NOISY = (
    "httpx",
    "httpcore",
    "huggingface_hub",
    "filelock",
    "matplotlib",
    "alembic",
    "datasets",
    "fsspec",
    "gguf",
    "lm_eval",
)


def log_to(path: Path | None) -> None:
    """Log lines go to the terminal and, from the moment that there is one, to a file of the run's
    folder.
    """
    root = logging.getLogger()
    _close_handlers()
    root.setLevel(logging.INFO)
    terminal: logging.Handler = (
        RichHandler(console=console, show_path=False, markup=False)
        if console.is_terminal
        else logging.StreamHandler(sys.stdout)
    )
    if not console.is_terminal:
        terminal.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        )
    root.addHandler(terminal)
    if path is not None:
        file = _LogFile(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    logging.getLogger(_REPORTED_ONCE).setLevel(logging.ERROR)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def own_log() -> Iterator[None]:
    """For a job inside of a program: log lines are its own meanwhile, and the program's handlers
    and levels are back afterwards.
    """
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in (_REPORTED_ONCE, *_NOISY))]
    levels, handlers = [each.level for each in loggers], root.handlers[:]
    root.handlers.clear()  # or `log_to` would close them
    try:
        yield
    finally:
        _close_handlers()
        root.handlers.extend(handlers)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _close_handlers() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take was said when it was written
            handler.close()


class _LogFile(logging.FileHandler):
    """Is given up, with one line on the terminal, where it cannot be written: a full disk would
    mean a traceback for each line.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger().removeHandler(self)
        log.warning("%s: %s; log lines are here only", self.baseFilename, error.strerror)


def print_line(text: str) -> None:
    """One line as it is: brackets are no markup, and no break is put into a path."""
    console.print(text, markup=False, soft_wrap=True)


def show_result(table: RenderableType, *lines: str) -> None:
    """How a command ends: its table, then where everything is."""
    console.print()
    console.print(table)
    for line in lines:
        print_line(line)


class WorkProgress:
    """One bar for a whole job. Shown on a terminal only; `left_s` serves log lines as well.

    Args:
        unit: what is counted, in the plural.
    """

    def __init__(self, unit: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + ", {task.fields[rate]}, {task.fields[left]} left,"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "starting evaluators", total=None, rate="-/s", left="?"
        )
        self._done = 0.0
        self._scored = 0.0
        self._remaining = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, description: str, remaining: float) -> None:
        """So much is still to come, estimated."""
        if not self._scored:
            self._started = time.monotonic()  # evaluators are up: the rate counts from here
        self._remaining = remaining
        self._progress.update(
            self._task, description=description, total=round(self._done + remaining)
        )

    def advance(self, done: float, *, scored: bool) -> None:
        """So much is done; what came from the store does not count for the rate."""
        self._done += done
        self._remaining -= done
        self._scored += done if scored else 0
        self._progress.update(
            self._task,
            completed=round(self._done, 1),
            rate=f"{self.rate:.1f}/s",
            left=duration(self.left_s),
        )

    @property
    def rate(self) -> float:
        """What was scored per second, over the whole run so far."""
        return self._scored / max(time.monotonic() - self._started, 1e-3)

    @property
    def left_s(self) -> float | None:
        """Seconds left for the whole job; None before the first score."""
        return max(self._remaining, 0) / self.rate if self.rate else None


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def stop(message: str, status: int) -> NoReturn:
    """Ends the process with one error for each line that is not indented."""
    lines = message.splitlines()
    console.print(
        "\n".join(f"error: {line}" if not line.startswith(" ") else line for line in lines),
        style="red",
        markup=False,
        soft_wrap=True,
    )
    sys.exit(status)
