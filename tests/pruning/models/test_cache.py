"""Converted models on disk: whole or not at all, and where they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pruning.models.cache import build_once, cache_folder


def test_a_folder_is_written_once_beside_its_place(tmp_path: Path) -> None:
    """Readable for all, and nothing else stays there."""
    cache = tmp_path / "home" / "cache"
    asked = []

    def write(scratch: Path) -> None:
        asked.append((scratch.parent, sorted(path.name for path in cache.glob("[!t]*"))))
        (scratch / "weights").write_text("whole")

    for name in ("model", "model", "other"):
        assert build_once(cache / name, write) == cache / name
    assert asked == [(cache, []), (cache, ["model"])]
    assert sorted(path.name for path in cache.iterdir()) == ["model", "other"]
    for folder in cache.iterdir():
        assert (folder / "weights").read_text() == "whole"
        assert folder.stat().st_mode & 0o777 == 0o755


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(scratch: Path) -> None:
        (scratch / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "model", write)
    assert not list(tmp_path.iterdir())


def test_who_is_second_takes_what_the_first_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def write(scratch: Path) -> None:
        (scratch / "weights").write_text("second")
        folder.mkdir()
        (folder / "weights").write_text("first")

    assert build_once(folder, write) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "weights").read_text() == "first"


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("no folder")
    with pytest.raises(NotADirectoryError):
        build_once(tmp_path / "model", lambda scratch: None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/home/somebody/.cache/multipruner"),
        ({"XDG_CACHE_HOME": "/scratch"}, "/scratch/multipruner"),
        ({"XDG_CACHE_HOME": ""}, "/home/somebody/.cache/multipruner"),
        ({"MULTIPRUNER_CACHE": "/models", "XDG_CACHE_HOME": "/scratch"}, "/models"),
        ({"MULTIPRUNER_CACHE": "~/models"}, "/home/somebody/models"),
    ],
)
def test_where_the_cache_is(
    variables: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTIPRUNER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
