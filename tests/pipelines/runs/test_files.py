"""The files of a run: named in one place, and read so that a damaged one is a message instead of a
traceback.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.runs import files
from tests.conftest import ROOT
from tests.pipelines.command import Outcome, run_command, searched
from tests.tiny_search import tiny_search

NAMES = {
    value
    for name, value in vars(files).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
}
ELSEWHERE = {("pipelines/store/scores.py", ".lock")}
"""The lock of a database file, which is no file of a run."""


def literals(path: Path) -> Iterator[str]:
    """Names of a run's files that a module spells out; sentences for people may."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            for name in NAMES:
                if re.search(rf"(^|/){re.escape(name)}$", node.value):
                    yield name


def test_a_name_is_spelt_out_in_one_file() -> None:
    assert {"run.json", "trajectory.jsonl", "channel_order.safetensors", "evaluation.json"} < NAMES
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / "pipelines").rglob("*.py"))
        if path != Path(files.__file__)
        for name in literals(path)
    }
    assert found == ELSEWHERE


def test_the_check_sees_literals(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text('a = folder / "run.json"\nb = f"{folder}/summary.json"\n')
    assert sorted(literals(tmp_path / "bad.py")) == ["run.json", "summary.json"]


@pytest.fixture(scope="module")
def search(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path, token_file: Path
) -> Path:
    """The folder of a search that removed blocks by their influence, and wrote every file."""
    folder = tmp_path_factory.mktemp("search")
    words = tiny_search(checkpoint_folder, token_file, "search.target_ratio=0.2")
    words = [word for word in words if "distribution" not in word and "group" not in word]
    return searched(folder, "search=shortgpt", *words).folder


COMMANDS = {
    "report": ("report", "runs=[{}]"),
    "export": ("export", "run={}"),
    "evaluate": ("evaluate", "run={} evaluation.texts=[wikitext2]"),
    "resume": ("prune", "output_dir={} resume=true"),
    "record": ("reproduce", "record={} record_as=x/y"),
    "plan": ("plan", "model.path=MODEL rate_of={}"),
    "sweep": ("sweep", "output_dir={} resume=true"),
    "status": ("status", "{}"),
}
SEARCH = (files.RUN, files.CONFIG, files.TRAJECTORY, files.SUMMARY)
READS = {
    "report": (*SEARCH, files.EVALUATION, files.SWEEP),
    "export": (*SEARCH, files.EVALUATION, files.CHANNEL_ORDER),
    "evaluate": (*SEARCH, files.CHANNEL_ORDER),
    "resume": (
        files.RUN,
        files.CONFIG,
        files.TRAJECTORY,
        files.CHANNEL_ORDER,
        files.BLOCK_INFLUENCE,
    ),
    "record": (*SEARCH, files.EVALUATION),
    "plan": (files.SUMMARY, files.CONFIG, files.TRAJECTORY),
    "sweep": (files.RUN,),
    "status": (files.STATUS,),
}
"""By command, the files that it reads."""


def run_on(folder: Path, command: str, model: Path) -> Outcome:
    name, words = COMMANDS[command]
    return run_command(name, *words.format(folder).replace("MODEL", str(model)).split())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    """A last line without an end is what a crash leaves of a trajectory: there, tear the first."""
    whole = path.read_bytes() if path.exists() else b'{"settings": {}}'
    path.write_bytes(whole[: len(whole) // 2 if path.suffix != ".jsonl" else 40])
    if path.suffix == ".yaml":
        path.write_bytes(b"model: [")
    if path.suffix == ".jsonl":
        path.write_bytes(path.read_bytes() + b"\n")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(128, 256)) + b"\n")


def a_list(path: Path) -> None:
    path.write_bytes(b"[1, 2]\n")


def unreadable(path: Path) -> None:
    """A folder in its place: what may be read says little about root."""
    path.unlink(missing_ok=True)
    path.mkdir()


DAMAGES = (empty, torn, binary, a_list, unreadable)
CASES = [
    pytest.param(command, name, damage, id=f"{command}-{name}-{damage.__name__}")
    for command, names in READS.items()
    for name in names
    # All use the same reader; those that start a job take seconds.
    for damage in (DAMAGES if command not in ("resume", "evaluate") else (torn, unreadable))
    if (name, damage) != (files.TRAJECTORY, empty)  # of a search that has not taken a step yet
]


@pytest.mark.parametrize(("command", "name", "damage"), CASES)
def test_a_damaged_file_is_named(
    command: str,
    name: str,
    damage: Callable[[Path], None],
    search: Path,
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(search, folder)
    if command == "resume" and name == files.BLOCK_INFLUENCE:
        (folder / files.TRAJECTORY).unlink()  # whose replay would find it first
    damage(folder / name)
    monkeypatch.chdir(tmp_path)
    outcome = run_on(folder, command, checkpoint_folder)
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert f"{folder / name} is damaged: " in error
    assert "; " in error, "it says what to do"


@pytest.mark.parametrize("command", ["report", "export", "evaluate", "record", "plan"])
def test_a_search_without_a_step(
    command: str,
    search: Path,
    checkpoint_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(search, tmp_path / "run")
    (tmp_path / "run" / files.TRAJECTORY).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    outcome = run_on(tmp_path / "run", command, checkpoint_folder)
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert error.endswith(f": the search in {tmp_path}/run has not taken a step yet")
