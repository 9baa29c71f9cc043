"""What is on the disk, and in which order, before a name says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pruning import disk

OPEN = Path("/proc/self/fd")
pytestmark = pytest.mark.skipif(not OPEN.exists(), reason="reads /proc")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed from here on, in its order, by name."""
    found: list[tuple[str, str]] = []
    replace = Path.replace

    def synced(descriptor: int) -> None:
        found.append(("sync", (OPEN / str(descriptor)).readlink().name))

    def renamed(path: Path, target: Path) -> Path:
        found.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return found


def test_a_file_is_synced_then_named_then_its_name_is_synced(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    (tmp_path / "old").write_text("new contents")
    (tmp_path / "new").write_text("old contents")
    disk.rename(tmp_path / "old", tmp_path / "new")
    assert events == [("sync", "old"), ("rename", "new"), ("sync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new").read_text() == "new contents"


def test_all_that_is_in_a_folder_is_synced_before_its_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    """Links that lead nowhere hold nothing that could be lost."""
    (tmp_path / "old/inner").mkdir(parents=True)
    (tmp_path / "old/inner/file").write_text("x")
    (tmp_path / "old/link").symlink_to(tmp_path / "nowhere")
    disk.rename(tmp_path / "old", tmp_path / "new")
    assert sorted(events[:3]) == [("sync", "file"), ("sync", "inner"), ("sync", "old")]
    assert events[3:] == [("rename", "new"), ("sync", tmp_path.name)]
    assert (tmp_path / "new/inner/file").read_text() == "x"


@pytest.mark.usefixtures("events")
def test_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = len(list(OPEN.iterdir()))
    for _ in range(3):
        disk.sync(tmp_path / "file")
    assert len(list(OPEN.iterdir())) == before


def test_nothing_stays_open_where_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    before = len(list(OPEN.iterdir()))
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync(tmp_path)
    assert len(list(OPEN.iterdir())) == before
