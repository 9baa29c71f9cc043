"""A shell that does not find the commands that a message names is told where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an environment without a place on the PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    found = tmp_path / "my env/bin"
    found.mkdir(parents=True)
    (found / "multipruner").touch(mode=0o755)
    monkeypatch.setattr(commands.sys, "executable", str(found / "python"))
    return found


def test_an_environment_is_entered(folder: Path) -> None:
    (folder / "activate").touch()
    said = commands.not_on_path()
    assert said == "first, for this shell to find the commands: . 'my env/bin/activate'"


def test_without_a_way_in_the_folder_is_named(folder: Path) -> None:
    assert commands.not_on_path() == f"the commands are in {folder}"


def test_nothing_is_said_where_they_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert commands.not_on_path() == ""
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "multipruner").unlink()
    assert commands.not_on_path() == "", "run from the source"
