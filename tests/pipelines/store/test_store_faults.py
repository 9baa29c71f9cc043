"""What happens to a store in an SQLite file when file, lock or disk fail."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import StoreUnavailable
from pipelines.store.scores import ScoreStore
from pruning.errors import InputError
from pruning.scoring.score import BatchScore
from tests.pipelines.store.contexts import CONTEXT


def test_a_file_that_cannot_be_written_is_found_at_the_start(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db"):
        pass
    with pytest.raises(
        InputError, match="readonly database; it cannot be written: check permissions"
    ):
        ScoreStore(f"sqlite:///file:{tmp_path}/scores.db?mode=ro&uri=true")
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"scores"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("drop table scores", "no such table: scores; it is not what it was when the search began"),
        ("update scores set nll = '[1.0, 2'", "a score is damaged .*delete the rows that are"),
    ],
)
def test_permanent_faults_are_raised_at_once(tmp_path: Path, damage: str, says: str) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db", retry_s=600) as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        with sqlite3.connect(tmp_path / "scores.db") as file:
            file.execute(damage)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=says):
            store.lookup(CONTEXT, ["a"])
        assert time.monotonic() - started < 2


def test_a_damaged_file_is_raised_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.db"
    with ScoreStore(f"sqlite:///{path}") as store:
        store.add(
            CONTEXT, {(f"shape{number}", 0): BatchScore((1.0,) * 50, 3) for number in range(500)}
        )
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    started = time.monotonic()
    with (
        pytest.raises(
            (StoreUnavailable, InputError), match="malformed; the file is damaged: restore it"
        ),
        ScoreStore(f"sqlite:///{path}") as store,
    ):
        store.lookup(CONTEXT, ["shape1"])
    assert time.monotonic() - started < 2


@pytest.fixture
def locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ScoreStore, subprocess.Popen[str]]]:
    """A store, and another process that holds its lock until it reads a line."""
    monkeypatch.setattr("pipelines.store.scores.SQLITE_TIMEOUT_S", 0.2)
    program = (
        "import sqlite3, sys; f = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "f.execute('begin exclusive'); print('locked', flush=True); input()"
    )
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db", retry_s=1.5) as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        command = [sys.executable, "-c", program, str(tmp_path / "scores.db")]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            yield store, other
            other.kill()


def test_a_lock_that_is_released(
    locked: tuple[ScoreStore, subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
) -> None:
    store, other = locked
    store._retry_s = 60
    release = threading.Timer(1, other.communicate, ["\n"])
    with caplog.at_level(logging.INFO):
        release.start()
        assert store.lookup(CONTEXT, ["a"]) == {
            ("a", 0): BatchScore((1.0,), 3)
        }  # readers do not wait
        started = time.monotonic()
        store.add(CONTEXT, {("b", 0): BatchScore((2.0,), 3)})
        assert time.monotonic() - started > 0.5
    release.join()
    assert store.lookup(CONTEXT, ["a", "b"]) == {
        ("a", 0): BatchScore((1.0,), 3),
        ("b", 0): BatchScore((2.0,), 3),
    }
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert "scores.db: database is locked; trying again for up to 60 s" in said[0][1]
    assert "scores.db: back after" in said[1][1]


def test_a_lock_that_stays(locked: tuple[ScoreStore, subprocess.Popen[str]]) -> None:
    store, _ = locked
    started = time.monotonic()
    with pytest.raises(
        StoreUnavailable,
        match=(
            r"^store\.url: .*scores.db: database is locked; another process is writing to it: "
            r"wait for it"
        ),
    ):
        store.add(CONTEXT, {("b", 0): BatchScore((2.0,), 3)})
    assert 1.5 < time.monotonic() - started < 5
    assert list(store.lookup(CONTEXT, ["a", "b"])) == [("a", 0)]


def test_no_second_attempt_if_none_is_wanted(
    locked: tuple[ScoreStore, subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = locked
    store._retry_s = 0
    with pytest.raises(StoreUnavailable, match="database is locked"):
        store.add(CONTEXT, {("b", 0): BatchScore((2.0,), 3)})
    assert caplog.records == []


def test_a_full_disk_loses_nothing(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    confirmed: dict[tuple[str, int], BatchScore] = {}
    with ScoreStore(f"sqlite:///{small_disk}/scores.db", retry_s=600) as store:

        def add(number: int) -> None:
            scores = {
                (f"shape{number}", batch): BatchScore((number + batch / 7,) * 20, 3)
                for batch in range(20)
            }
            store.add(CONTEXT, scores)
            confirmed.update(scores)

        def fill() -> None:
            for number in range(10_000):
                add(number)

        started = time.monotonic()
        with pytest.raises(
            StoreUnavailable,
            match="full; the disk is full: free space and run the same command again",
        ) as caught:
            fill()
        assert time.monotonic() - started < 20  # of 600 s for which an outage would be waited for
        assert not [record for record in caplog.records if record.name.startswith("pipelines")], (
            "there is nothing to wait for"
        )
        assert len(confirmed) > 200
        assert small_disk.name in str(caught.value)
        with sqlite3.connect(small_disk / "scores.db") as file:
            assert file.execute("pragma integrity_check").fetchone() == ("ok",)
            assert file.execute("select count(*) from scores").fetchone() == (len(confirmed),)
        file.close()
        assert store.lookup(CONTEXT, [shape for shape, _ in confirmed]) == confirmed
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        for number in range(20_000, 20_010):
            add(number)
        assert store.lookup(CONTEXT, [shape for shape, _ in confirmed]) == confirmed
    with ScoreStore(f"sqlite:///{small_disk}/scores.db") as store:
        assert store.lookup(CONTEXT, [shape for shape, _ in confirmed]) == confirmed
