"""Folders, stores and servers that cannot be used: nothing that is there is lost."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from pipelines.runs.journal import Journal
from tests.pipelines.cli.conftest import refused
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Search
from tests.tiny_search import DEAD_END


def test_a_folder_of_another_run(ended: Outcome, search: Search) -> None:
    first = ended
    text = (first.folder / "trajectory.jsonl").read_text()
    outcome = search("search.target_ratio=0.3", "calibration.batch_size=2")
    assert outcome.status == 2
    assert "belongs to another run" in outcome.output.replace("\n", " ")
    assert "search.target_ratio: 0.25 there, 0.3 here" in outcome.output
    assert "calibration.batch_size: 4 there, 2 here" in outcome.output
    assert (first.folder / "trajectory.jsonl").read_text() == text
    assert search("resume=true", "search.target_ratio=0.3", bare=True).status == 2


@pytest.mark.parametrize(
    ("choice", "variable"),
    [("tracking=server", "MLFLOW_TRACKING_URI"), ("store=postgresql", "MULTIPRUNER_STORE_URL")],
)
def test_a_url_that_should_be_in_the_environment(
    search: Search, choice: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    outcome = search(choice, bare=True)
    assert outcome.status == 2
    assert f"empty; put it into the environment, as {variable}=" in outcome.output.replace(
        "\n", " "
    )


def test_a_password_has_to_be_given_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not saved, and the run must not go on with another store or server in silence."""
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 0.1)
    outcome = search("tracking.uri=http://me:hunter2@127.0.0.1:9", *DEAD_END)
    assert "http://me:***@127.0.0.1:9" in (outcome.folder / "config.yaml").read_text()
    refused_again = search("resume=true", bare=True)
    assert refused_again.status == 2
    assert (
        "tracking.uri: the run in output_dir used http://me:***@127.0.0.1:9, and passwords are "
        "not saved; set MLFLOW_TRACKING_URI to the whole URL"
    ) in refused_again.output.replace("\n", " ")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:another@127.0.0.1:8")
    assert search("resume=true", bare=True).status == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    assert "passwords are not saved" not in search("resume=true", bare=True).output


def test_a_password_of_the_command_line_is_asked_for_by_its_variable(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the command that is printed for going on, which cannot show it."""
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 0.1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    append = Journal.append

    def interrupted(self: Journal, line: dict[str, object]) -> None:
        append(self, line)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    stopped = search("tracking.uri=http://me:hunter2@127.0.0.1:9")
    monkeypatch.setattr(Journal, "append", append)
    assert stopped.output.splitlines()[-1] == (
        "  Everything computed so far is kept. To go on, with the password for ***: "
        "MLFLOW_TRACKING_URI='http://me:***@127.0.0.1:9' multipruner prune resume=true "
        f"output_dir={stopped.folder}"
    )


def test_a_password_is_not_in_the_message_about_its_own_option(search: Search) -> None:
    outcome = search("store.url=[postgresql://me:hunter2@db/scores")
    assert outcome.status == 2
    assert "hunter2" not in outcome.output
    assert "***" in outcome.output


def test_a_folder_of_something_else(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    refused(search, says=["is not empty and not a run's folder (it has thesis.tex)"])


def test_a_folder_in_use(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        refused(search, says=["another process is at work in"])


def test_an_edited_trajectory(ended: Outcome, search: Search) -> None:
    first = ended
    path = first.folder / "trajectory.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = (
        lines[1].replace('"nll": ', '"nll": 1', 1)
        if json.loads(lines[1])["candidates"][0]["nll"] > 9
        else json.dumps(
            json.loads(lines[1]) | {"removed": {"kind": "mlp", "layer": 0, "mlp_channels": 0}}
        )
    )
    path.write_text("\n".join(lines) + "\n")
    outcome = search()
    assert outcome.status == 2
    assert "step 2 of" in outcome.output
    path.write_text("not json\n")
    assert "is damaged" in search().output.replace("\n", " ")


def test_a_corrupt_store(search: Search, tmp_path: Path) -> None:
    (tmp_path / "scores.db").write_bytes(b"this is no database, whatever its name says" * 50)
    refused(search, says=["store.url:", "file is not a database", "give another store.url"])
    with sqlite3.connect(tmp_path / "future.db") as store:
        store.execute("create table schema_version (version integer primary key)")
        store.execute("insert into schema_version values (99)")
    refused(
        search,
        f"store.url=sqlite:///{tmp_path}/future.db",
        says=["has schema version 99, this program writes 1"],
    )


def test_a_locked_store(
    ended: Outcome, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.store.scores.SQLITE_TIMEOUT_S", 0.2)
    with sqlite3.connect(tmp_path / "scores.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        outcome = search("calibration.batch_size=2", folder="second")
        assert outcome.status == 2
        assert "database is locked" in outcome.output
        assert "another process is writing to it" in outcome.output.replace("\n", " ")
        other.execute("rollback")
    assert search("calibration.batch_size=2", folder="second").status == 0


def test_a_full_disk(undisturbed: Outcome, search: Search, tmp_path: Path) -> None:
    """The kernel refuses every write beyond a file size, as a full disk would; afterwards the same
    command goes on.
    """
    journal = tmp_path / "run/trajectory.jsonl"
    limit = 2000
    assert (undisturbed.folder / "trajectory.jsonl").stat().st_size > limit
    from pipelines.runs.journal import Journal

    append = Journal.append

    def limited(self: Journal, line: dict[str, object]) -> None:
        if journal.exists() and journal.stat().st_size > limit:
            raise OSError(28, "No space left on device", str(journal))
        append(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", limited)
        outcome = search()
    assert outcome.status == 1
    assert "No space left on device" in outcome.output
    assert (
        f"To go on: multipruner prune resume=true output_dir={outcome.folder}"
        in outcome.output.replace("\n", " ")
    )
    resumed = search()
    assert resumed.status == 0
    assert resumed.trajectory == undisturbed.trajectory


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    from pipelines.runs.journal import Journal

    (tmp_path / "trajectory.jsonl").symlink_to("/dev/full")
    journal = Journal.__new__(Journal)
    journal.path, journal.lines = tmp_path / "trajectory.jsonl", []
    with pytest.raises(OSError, match="No space left"):
        journal.append({"step": 1})
    assert journal.lines == []


def test_a_place_that_cannot_be_written(search: Search) -> None:
    """/proc is read-only for everyone, root included."""
    outcome = search("output_dir=/proc/nowhere")
    assert outcome.status == 2
    assert "output_dir: cannot write to /proc/nowhere" in outcome.output
    outcome = search("store.url=sqlite:////proc/nowhere/scores.db")
    assert outcome.status == 2
    assert "store.url: sqlite:////proc/nowhere/scores.db" in outcome.output.replace("\n", "")
