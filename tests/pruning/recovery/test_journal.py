"""The journal and the checkpoints of a training, without one: what is kept, cut and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.errors import InputError
from pruning.recovery.journal import (
    CHECKPOINTS,
    JOURNAL,
    Line,
    TrainingFiles,
    checkpoint_steps,
    ended,
)
from tests.pruning.recovery.recoveries import SETTINGS


def lines_of(heldout_nlls: Sequence[float | None]) -> list[Line]:
    return [{"step": step, "heldout_nll": nll} for step, nll in enumerate(heldout_nlls)]


def files_with(folder: Path, heldout_nlls: Sequence[float | None]) -> TrainingFiles:
    """Of a training with a checkpoint after each update that measured held-out text."""
    files = TrainingFiles(folder)
    for line in lines_of(heldout_nlls):
        files.append(line)
        if line["heldout_nll"] is not None:
            files.save(line["step"], write)
    return files


def write(path: Path) -> None:
    path.write_bytes(b"adapters")


def written(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / JOURNAL).read_text().splitlines()]


def test_the_last_checkpoint_and_the_first_of_the_best_are_kept(tmp_path: Path) -> None:
    files = files_with(tmp_path, [3.0, None, 1.0, 1.0, 2.0])
    assert checkpoint_steps(tmp_path) == {2, 4}
    assert (files.last_step, files.num_saved) == (4, 5)
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == [
        "step-000002.safetensors", "step-000004.safetensors"
    ]  # fmt: skip


def test_lines_that_no_checkpoint_includes_are_cut(tmp_path: Path) -> None:
    """In a new process, and in the one that trains; without a checkpoint all of them."""
    files = files_with(tmp_path, [3.0, None, 1.0, None, None])
    assert TrainingFiles(tmp_path).lines == lines_of([3.0, None, 1.0])
    assert written(tmp_path) == [0, 1, 2]
    files.drop_unsaved()
    assert len(files.lines) == files.num_saved == 3
    files.append({"step": 3, "heldout_nll": None})
    assert written(tmp_path) == [0, 1, 2, 3]
    (tmp_path / "new").mkdir()
    new = files_with(tmp_path / "new", [None, None])
    assert (new.last_step, new.num_saved) == (None, 0)
    assert TrainingFiles(tmp_path / "new").lines == written(tmp_path / "new") == []


def test_a_process_that_does_not_write_knows_the_lines_and_leaves_the_folder_alone(
    tmp_path: Path,
) -> None:
    files_with(tmp_path, [3.0, None, 1.0, None])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    files = TrainingFiles(tmp_path, told=lines_of([3.0, None, 1.0]))
    for line in lines_of([3.0, None, 1.0, None, 2.0])[3:]:
        files.append(line)
    files.save(4, write)
    files.drop_unsaved()
    assert files.lines == lines_of([3.0, None, 1.0, None, 2.0])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_loss_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    files = files_with(tmp_path, [3.0])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.append({"step": 1, "loss": math.nan, "heldout_nll": None})
    assert files.lines == TrainingFiles(tmp_path).lines == lines_of([3.0])


def test_a_last_line_that_a_crash_cut_short_is_none(tmp_path: Path) -> None:
    files_with(tmp_path, [3.0, 2.0])
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"step": 2, "heldo')
    assert TrainingFiles(tmp_path).lines == lines_of([3.0, 2.0])
    assert written(tmp_path) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 0}\n{"step": 2}\n', "its steps are not 0, 1, 2"),
        ('{"step": 0}\nnull\n', "recovery.jsonl is damaged: "),
        ('{"step": 0}\n{"loss": 1}\n', "recovery.jsonl is damaged: 'step'"),
        ('{"step": 0\n{"step": 1}\n', "recovery.jsonl is damaged: Expecting"),
        ('{"step": 0}\n', "it lacks updates that step-000001.safetensors includes"),
        ("", "it lacks updates that step-000001.safetensors includes"),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path: Path, text: str, message: str) -> None:
    files_with(tmp_path, [3.0, 2.0])
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(InputError, match=f"^output_dir: .*{message}.*recover again$"):
        TrainingFiles(tmp_path)
    assert (tmp_path / JOURNAL).read_text() == text, "as it was found"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_journal_with_what_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    """Nobody writes one, and what comes next could not be written after it."""
    files_with(tmp_path, [3.0])
    text = f'{{"step": 0, "heldout_nll": {number}}}\n'
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(InputError, match=f"^output_dir: .*damaged: {number} is no number; remove"):
        TrainingFiles(tmp_path)
    assert (tmp_path / JOURNAL).read_text() == text, "as it was found"


def test_a_checkpoint_is_written_unseen_where_it_will_lie(tmp_path: Path) -> None:
    """So that it gets its name at once, and nobody takes it for one before."""
    seen: list[Path] = []

    def see(path: Path) -> None:
        seen.append(path)
        write(path)

    files = files_with(tmp_path, [3.0, 2.0])
    files.append({"step": 2, "heldout_nll": 1.0})
    files.save(2, see)
    [path] = seen
    assert path.parent.parent == tmp_path / CHECKPOINTS
    assert path.parent.name.startswith(".")
    assert checkpoint_steps(tmp_path) == {2}


def test_a_checkpoint_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    files = files_with(tmp_path, [3.0, 2.0])

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    files.append({"step": 2, "heldout_nll": 1.0})
    with pytest.raises(OSError, match="no space left"):
        files.save(2, full)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-000001.safetensors"]
    assert TrainingFiles(tmp_path).lines == lines_of([3.0, 2.0])


def test_the_disk_has_the_lines_before_the_checkpoint_that_includes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut leaves a checkpoint without them, which cannot be gone on from."""
    done: list[Path] = []
    rename = Path.replace

    def renamed(path: Path, target: Path) -> Path:
        done.append(target)
        return rename(path, target)

    monkeypatch.setattr("pruning.disk.sync", done.append)
    monkeypatch.setattr(Path, "replace", renamed)
    files = files_with(tmp_path, [3.0])
    checkpoint = done.index(files.checkpoint(0))
    assert {tmp_path / JOURNAL, tmp_path} <= set(done[:checkpoint]), "contents and name"


@pytest.mark.parametrize(
    ("heldout_nlls", "patience", "expected"),
    [
        ([3.0, 2.0, 1.0], None, None),
        ([3.0, 2.0, 1.0, 0.5], None, "steps"),
        ([3.0, 3.0], 2, None),
        ([3.0, 3.0, 3.5], 2, "patience"),
        ([3.0, None, 3.0], 2, None),
        ([3.0, 4.0, 2.0], 2, None),
        ([3.0, 4.0, 5.0], None, None),
    ],
)
def test_it_ends_after_all_updates_or_checkpoints_without_gain(
    heldout_nlls: list[float | None], patience: int | None, expected: str | None
) -> None:
    """Three updates at most; the line before the first is none."""
    settings = replace(SETTINGS, steps=3, patience=patience)
    assert ended(lines_of(heldout_nlls), settings) == expected
