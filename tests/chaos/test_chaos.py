"""Random faults, seeded, over many short searches: the same trajectory every time, and nothing left
at the end.

`make chaos` prints its figures; `make short-tiers` has one fault of each kind. The seed decides
which faults, when and whom; CHAOS_SEED and CHAOS_FAULTS repeat a run or make another one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import ray

from tests.chaos.drivers import kill_drivers
from tests.chaos.figures import Figures
from tests.chaos.leaks import Holdings, wait_until
from tests.chaos.plan import KINDS, draw_searches
from tests.chaos.report import report
from tests.chaos.searches import SETTINGS, Chaos
from tests.tiny_search import tiny_search
from tests.workers.conftest import spec as spec
from workers.cluster.ray_session import local_ray
from workers.tasks import EvaluatorSpec

MORE_FILE_DESCRIPTORS = 4
"""Connections to the last evaluators, which gRPC closes when it likes.

A leak for each search or each evaluator would be tens to hundreds.
"""
MORE_THREADS = 4
"""Of gRPC, which makes and ends them as it needs; there is none for each evaluator."""
MORE_SHARED_MEMORY = 2**20
"""Pages of the object store's own bookkeeping.

The tasks here are too small for it: Ray sends them with the call.
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for this test alone, where anything that is left shows."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _evaluators_get_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives its workers the least time of all (nice 15), which on a machine that others use can
    make their starts take minutes.
    """
    monkeypatch.setenv("RAY_worker_niceness", "0")


def prune_arguments(checkpoint: Path, token_file: Path) -> list[str]:
    """A search of some fifty steps."""
    return tiny_search(
        checkpoint,
        token_file,
        "calibration.num_width_samples=8",
        "calibration.batch_size=2",
        "search.target_ratio=0.4",
        "search.distribution=[20,70,10]",
        "search.mlp_group_channels=1",
    )


def nothing_is_left(figures: Figures) -> bool:
    before, now = figures.holdings[0][1], Holdings.now()
    figures.holdings[1:] = [("after", now)]
    return (
        now.evaluators == now.actors == now.temporary_files == 0
        and now.file_descriptors <= before.file_descriptors + MORE_FILE_DESCRIPTORS
        and now.threads <= before.threads + MORE_THREADS
        and now.shared_memory <= before.shared_memory + MORE_SHARED_MEMORY
    )


def suffer(
    spec: EvaluatorSpec, folder: Path, seed: int, num_faults: int, num_evaluators: int
) -> Figures:
    sys.stdout.write(
        f"\nCHAOS_SEED={seed} CHAOS_FAULTS={num_faults}, {num_evaluators} evaluators\n"
    )
    figures = Chaos(
        folder, spec, draw_searches(seed, num_faults, len(SETTINGS)), num_evaluators
    ).run()
    calm = wait_until(lambda: nothing_is_left(figures), 60)
    assert calm, f"something is left:\n{report(figures)}"
    return figures


@pytest.mark.short_tier
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("temporary")
def test_some_faults(
    checkpoint_folder: Path, spec: EvaluatorSpec, token_file: Path, tmp_path: Path
) -> None:
    """One of each kind, and one kill of a real driver."""
    arguments = prune_arguments(checkpoint_folder, token_file)
    torment(spec, arguments, tmp_path, len(KINDS) + 1, num_kills=1)


@pytest.mark.chaos
@pytest.mark.timeout(2 * 3600)
@pytest.mark.usefixtures("temporary")
def test_many_faults(
    checkpoint_folder: Path, spec: EvaluatorSpec, token_file: Path, tmp_path: Path
) -> None:
    """200 of them; some are kills of real drivers."""
    num_faults = int(os.environ.get("CHAOS_FAULTS", "200"))
    arguments = prune_arguments(checkpoint_folder, token_file)
    torment(spec, arguments, tmp_path, num_faults, num_kills=-(-num_faults // 50))


def torment(
    spec: EvaluatorSpec, arguments: Sequence[str], folder: Path, num_faults: int, *, num_kills: int
) -> None:
    """With a Ray of its own, of which no process may be left."""
    assert not ray.is_initialized(), "run it alone: make chaos"
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    before = set(psutil.Process().children(recursive=True))
    with local_ray(4, 0):
        figures = suffer(spec, folder / "searches", seed, num_faults - num_kills, 3)
    assert wait_until(lambda: not set(psutil.Process().children(recursive=True)) - before, 60), (
        psutil.Process().children(recursive=True)
    )
    killed = kill_drivers(folder / "drivers", arguments, num_kills, seed)
    sys.stdout.write(report(figures, killed) + "\n")
    struck = {name for name, effect in figures.effects.items() if effect.injected}
    assert struck == {kind.name for kind in KINDS} or num_faults - num_kills < len(KINDS)
