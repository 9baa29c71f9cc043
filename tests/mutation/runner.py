"""Runs the tests of mutants, each in a fork of one process that has the libraries imported.

Starting Python with torch, Ray and MLflow takes seven seconds; most tests of one module take less.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from tests.mutation.mutants import Mutant, mutated

LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "datasets",
    "gguf",
    "hydra",
    "hypothesis.internal.conjecture.engine",
    "matplotlib.figure",
    "mlflow",
    "psutil",
    "pytest",
    "ray",
    "rich.console",
    "safetensors.torch",
    "scipy.optimize",
    "sqlalchemy.dialects.sqlite",
)
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0")
SLOWER = 5
"""How many times longer than without a mutant, and this many seconds more, mean: it hangs."""


@dataclass(frozen=True)
class Verdict:
    """Args:
    outcome: killed (a test failed), hung (ended by the time limit), survived, or crashed: the
        tests neither passed nor did one fail, so that nobody knows whether one would.
    by: the test that failed.
    """

    mutant: Mutant
    outcome: str
    seconds: float
    by: str = ""


def warm_up() -> None:
    """Imports what tests need. One thread: those of OpenMP do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a fork that collects what is here would copy its pages


Tests = tuple[str, ...]


def baselines(lists: Sequence[Tests], *, jobs: int) -> Iterator[tuple[Tests, float | str]]:
    """Seconds that each list of tests takes without a mutant, as they come; of those that do not
    pass, what they said.

    Args:
        jobs: forks at a time, as many as later: then these times are theirs.
    """
    waiting = list(lists)
    running: dict[int, tuple[Tests, float, tempfile.TemporaryDirectory[str]]] = {}
    while running or waiting:
        while waiting and len(running) < jobs:
            tests, scratch = waiting.pop(0), tempfile.TemporaryDirectory()
            running[_fork(tests, None, Path(scratch.name))] = (tests, time.monotonic(), scratch)
        child, status = os.waitpid(-1, 0)
        tests, started, scratch = running.pop(child)
        said = _said(Path(scratch.name))[-2000:]
        scratch.cleanup()
        yield tests, said if status else time.monotonic() - started


def run(
    mutants: Sequence[tuple[Mutant, Sequence[str], float]], *, jobs: int, until: float
) -> Iterator[Verdict]:
    """Verdicts as they come.

    Args:
        mutants: each with its tests and the seconds that these take without a mutant.
        jobs: forks at a time.
        until: no fork starts after this time of `time.monotonic()`.
    """
    waiting = list(mutants)
    running: dict[int, tuple[Mutant, float, float, tempfile.TemporaryDirectory[str]]] = {}
    while running or (waiting and time.monotonic() < until):
        while waiting and len(running) < jobs and time.monotonic() < until:
            mutant, tests, seconds = waiting.pop(0)
            scratch = tempfile.TemporaryDirectory()
            child = _fork(tests, mutant, Path(scratch.name))
            now = time.monotonic()
            running[child] = (mutant, now, now + SLOWER * (seconds + SLOWER), scratch)
        for child in list(running):
            mutant, started, limit, scratch = running[child]
            ended, status = os.waitpid(child, os.WNOHANG)
            hung = not ended and time.monotonic() > limit
            if hung:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or hung:
                del running[child]
                by = re.findall(r"^(?:FAILED|ERROR) (\S+)", _said(Path(scratch.name)), re.MULTILINE)
                scratch.cleanup()
                outcome = "hung" if hung else _outcome(os.waitstatus_to_exitcode(status), by)
                yield Verdict(mutant, outcome, time.monotonic() - started, *by[:1])
        time.sleep(0.02)


def _outcome(exit_code: int, failed: Sequence[str]) -> str:
    """pytest's 1 and 2 are failed tests and files that cannot be imported; more is its own failure,
    less than 0 a signal.
    """
    if exit_code == 0:
        return "survived"
    return "killed" if exit_code in (1, 2) and failed else "crashed"


def _said(scratch: Path) -> str:
    return (scratch / "output").read_text(errors="replace")


def _fork(tests: Sequence[str], mutant: Mutant | None, scratch: Path) -> int:
    """The id of a child, which leads a process group."""
    child = os.fork()
    if child:
        return child
    status = 3  # pytest's own for an internal error
    try:
        os.setsid()
        output = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = _test(tests, mutant, scratch)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _test(tests: Sequence[str], mutant: Mutant | None, scratch: Path) -> int:
    import pytest

    os.environ["TMPDIR"] = str(scratch)
    tempfile.tempdir = None
    if mutant is not None:
        sys.meta_path.insert(0, _Mutating(mutant))
    return int(pytest.main([*OPTIONS, f"--basetemp={scratch / 'tests'}", *tests]))


class _Mutating(importlib.abc.MetaPathFinder):
    """Imports one module with a change. Only what runs in this process sees it."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = mutant.module.removesuffix(".py").replace("/", ".")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self.mutant.index)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, index: int) -> None:
        super().__init__(fullname, path)
        self.index = index

    def get_code(self, fullname: str) -> CodeType:
        tree = mutated(Path(self.path).read_text(encoding="utf-8"), self.index)
        return compile(tree, self.path, "exec", dont_inherit=True)
