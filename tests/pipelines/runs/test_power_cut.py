"""In which order the disk gets what a search writes: contents before names, scores before the step,
the step before anybody is told.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from threading import get_ident

import pytest

from pipelines.prune.observers import SearchTracking
from pipelines.runs.files import CHANNEL_ORDER, RUN, SHAPE, SUMMARY, TRAJECTORY
from pruning.models.cache import build_once
from tests.pipelines.conftest import Cli, Search

Event = tuple[str, str]
"""`("sync", path)`, `("rename", target)` or `("told", step)`."""
Events = dict[int, list[Event]]
"""By thread: MLflow's id comes from one of its own."""


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What happens to the disk from here on, in its order."""
    found: Events = defaultdict(list)
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        found[get_ident()].append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        found[get_ident()].append(("rename", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return found


def assert_durable(events: Events, target: Path) -> None:
    """Each time that it got its name, its contents were synced just before, the name just after."""
    rename, count = ("rename", str(target)), 0
    for thread in events.values():
        for index in (index for index, event in enumerate(thread) if event == rename):
            count += 1
            kind, source = thread[index - 1]
            assert kind == "sync", target
            assert Path(source).name == target.name or target.suffix == "", target
            assert thread[index + 1] == ("sync", str(target.parent)), target
    assert count, target


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_search(
    search: Search, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = SearchTracking.stepped

    def told(self: SearchTracking, search: object, line: dict[str, object]) -> None:
        on_disk = (self.folder.path / TRAJECTORY).read_bytes().splitlines()
        assert json.loads(on_disk[-1])["step"] == line["step"], "the step is in the journal"
        events[get_ident()].append(("told", str(line["step"])))
        stepped(self, search, line)  # type: ignore[arg-type]

    monkeypatch.setattr(SearchTracking, "stepped", told)
    outcome = search()
    assert outcome.status == 0, outcome.output
    folder, steps = outcome.folder, len(outcome.trajectory)
    for name in (RUN, CHANNEL_ORDER, SUMMARY, SHAPE):
        assert_durable(events, folder / name)
    wal = ("sync", f"{tmp_path}/scores.db-wal")
    journal = ("sync", str(folder / TRAJECTORY))
    own = events[get_ident()]
    order = [event for event in own if event in (wal, journal) or event[0] == "told"]
    assert order == [
        event for step in range(1, steps + 1) for event in (wal, journal, ("told", str(step)))
    ]
    assert own[own.index(journal) + 1] == ("sync", str(folder)), "the new file's name"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_an_export_and_a_cache(search: Search, cli: Cli, tmp_path: Path, events: Events) -> None:
    outcome = search()
    done = cli("export", f"run={outcome.folder}", "format=transformers", folder=None)
    assert done.status == 0, done.output
    build_once(tmp_path / "cache/kept", lambda scratch: fill(scratch / "weights"))
    for target in (outcome.folder / "transformers", tmp_path / "cache/kept"):
        assert_durable(events, target)
        own = events[get_ident()]
        index = own.index(("rename", str(target)))
        names = {path.name for path in target.rglob("*") if path.is_file()}
        before = {Path(path).name for kind, path in own[:index] if kind == "sync"}
        assert names
        assert names <= before, "all that is in it"


def fill(path: Path) -> None:
    path.write_bytes(b"w")


def test_a_step_whose_scores_the_disk_does_not_take_is_not_written(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipelines.runs.folder.disk.rename", lambda path, to: path.replace(to))
    monkeypatch.setattr("pruning.disk.sync", broken)
    outcome = search()
    assert outcome.status == 1, outcome.output
    assert "store.url: " in outcome.errors[0]
    assert "Input/output error" in outcome.errors[0]
    assert not (outcome.folder / TRAJECTORY).exists()
