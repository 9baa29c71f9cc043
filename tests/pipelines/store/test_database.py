"""A database that is away, and what is tried again: with errors as the drivers raise them."""

from __future__ import annotations

import logging
import re
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sql

from pipelines.errors import StoreUnavailable
from pipelines.store.database import Database
from pipelines.store.schema import prepare
from pipelines.store.scores import ScoreStore
from pruning.scoring.score import BatchScore
from tests.pipelines.store.contexts import CONTEXT


def driver_error(state: str | None, text: str = "", module: str = "psycopg.errors") -> Exception:
    kind = type("Error", (Exception,), {"__module__": module, "sqlstate": state})
    error: Exception = kind(text)
    return error


def sqlite_error(code: int | None) -> Exception:
    error = sqlite3.OperationalError("said")
    if code is not None:
        error.sqlite_errorcode = code
    return sql.exc.OperationalError("select", {}, error)


class Failing:
    """Work that fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, connection: sql.Connection) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def database() -> Database:
    return Database("sqlite://", sqlite_timeout_s=1)


@pytest.mark.parametrize(
    "error",
    [
        sql.exc.OperationalError("select", {}, driver_error("08006")),
        sql.exc.OperationalError("select", {}, driver_error("40001")),
        sql.exc.OperationalError("select", {}, driver_error("57P01")),
        sql.exc.OperationalError("select", {}, driver_error(None, "server closed the connection")),
        sql.exc.OperationalError(
            "select", {}, driver_error(None, "gone", "another.driver"), connection_invalidated=True
        ),
        sqlite_error(sqlite3.SQLITE_BUSY),
        sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT),
        sqlite_error(sqlite3.SQLITE_LOCKED_SHAREDCACHE),
        sqlite_error(sqlite3.SQLITE_PROTOCOL),
    ],
)
def test_an_outage_is_waited_for(
    database: Database, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level("INFO", "pipelines.store.database")
    assert database.run_with_retry(Failing(error), retry_s=9) == "done"
    assert ": back after " in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    "error",
    [
        sql.exc.OperationalError("select", {}, driver_error("23505")),
        sql.exc.OperationalError("select", {}, driver_error(None, "no password supplied")),
        sql.exc.OperationalError("select", {}, driver_error(None, "away", "another.driver")),
        sql.exc.ProgrammingError("select", {}, driver_error(None, "syntax")),
        sqlite_error(sqlite3.SQLITE_FULL),
        sqlite_error(sqlite3.SQLITE_IOERR_FSYNC),
        sqlite_error(None),
        ValueError("not of the database"),
    ],
)
def test_another_attempt_is_made_only_where_it_helps(database: Database, error: Exception) -> None:
    work = Failing(error)
    with pytest.raises(type(error)):
        database.run_with_retry(work, retry_s=9)
    assert not work.errors, "one attempt"


def test_an_outage_is_said_once_and_when_it_is_over(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipelines.store.database")
    database.run_with_retry(Failing(), retry_s=9)
    assert caplog.records == [], "there was none"
    errors = [
        sql.exc.OperationalError("select", {}, driver_error("08006", text))
        for text in ("first", "second")
    ]
    database.run_with_retry(Failing(*errors), retry_s=9)
    began, ended = (record.getMessage() for record in caplog.records)
    assert "first; trying again for up to 9 s" in began
    [seconds] = re.findall(r"back after (\d+\.\d) s$", ended)
    assert float(seconds) < 9


def test_pauses_double_up_to_10_seconds_and_end_with_the_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With up to 0.2 s at random on top, so that drivers do not come back all at once."""
    paused: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", paused.append)
    away = sql.exc.OperationalError("select", {}, driver_error("08006"))
    assert database.run_with_retry(Failing(*[away] * 8), retry_s=600) == "done"
    least = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert all(low <= pause <= low + 0.2 for low, pause in zip(least, paused, strict=True))
    paused.clear()
    database.run_with_retry(Failing(*[away] * 4), retry_s=1)
    assert paused[3] == pytest.approx(1, abs=0.2), "not 1.6 s"


def test_what_stays_away_is_raised_when_the_time_is_over(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the driver raised it: on a clock that only pauses move."""
    paused: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(paused))
    monkeypatch.setattr("pipelines.store.database.time", clock)
    monkeypatch.setattr("tenacity.time", clock)
    monkeypatch.setattr("tenacity.nap.time.sleep", paused.append)
    work = Failing(*[sql.exc.OperationalError("select", {}, driver_error("08006"))] * 20)
    with pytest.raises(sql.exc.OperationalError):
        database.run_with_retry(work, retry_s=2)
    assert sum(paused) == pytest.approx(2)
    assert len(work.errors) == 15, "0.2 s, 0.4 s, 0.8 s and what was left"


def test_a_lost_connection_is_said_once() -> None:
    """Here, and not by the driver as well."""
    assert not logging.getLogger("psycopg").isEnabledFor(logging.WARNING)


def test_what_a_driver_says_is_cut(database: Database) -> None:
    said = database.explain(ValueError("word " + 400 * "x"))
    assert said == f"sqlite://: word {295 * 'x'}; check store.url"
    assert database.explain(ValueError()) == "sqlite://: ValueError; check store.url"


def test_what_was_committed_is_synced_in_the_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("pruning.disk.sync", synced.append)
    database = Database(f"sqlite:///{tmp_path}/scores.db", sqlite_timeout_s=1)
    database.sync()
    assert synced == [], "nothing was written"
    database.run_with_retry(lambda connection: prepare(connection, "scores.db"), retry_s=0)
    database.sync()
    assert synced == [tmp_path / "scores.db-wal"]
    database.close()


def test_values_are_not_in_the_error(database: Database) -> None:
    def work(connection: sql.Connection) -> None:
        connection.execute(sql.text("insert into nowhere values (:value)"), {"value": "my score"})

    with pytest.raises(sql.exc.OperationalError) as caught:
        database.run_with_retry(work, retry_s=0)
    assert "nowhere" in str(caught.value)
    assert "my score" not in str(caught.value)


def test_a_store_that_is_opened_again_keeps_one_version(database: Database) -> None:
    for _ in range(2):
        database.run_with_retry(lambda connection: prepare(connection, "memory"), retry_s=0)
    count = sql.text("select count(*) from schema_version")
    assert database.run_with_retry(lambda c: c.execute(count).scalar(), retry_s=0) == 1


def test_a_store_syncs_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(f"no space left for {path.name}")

    monkeypatch.setattr("pruning.disk.sync", full)
    with (
        ScoreStore(f"sqlite:///{tmp_path}/scores.db") as store,
        pytest.raises(StoreUnavailable, match=r"no space left for scores.db-wal"),
    ):
        store.sync()


def test_a_store_that_is_closed_leaves_no_files_of_a_connection(tmp_path: Path) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db"):
        assert (tmp_path / "scores.db-wal").exists()
    assert not (tmp_path / "scores.db-wal").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("drop table scores", r"no such table: scores; it is not what it was when"),
        ("update scores set nll = '[1.0'", r"a score is damaged \(.*\); restore the store"),
    ],
)
def test_what_another_attempt_does_not_mend_is_said(tmp_path: Path, damage: str, says: str) -> None:
    with ScoreStore(f"sqlite:///{tmp_path}/scores.db", retry_s=0) as store:
        store.add(CONTEXT, {("a", 0): BatchScore((1.0,), 3)})
        with sqlite3.connect(tmp_path / "scores.db") as file:
            file.execute(damage)
        file.close()
        with pytest.raises(StoreUnavailable, match=rf"^store\.url: sqlite:.*: {says}"):
            store.lookup(CONTEXT, ["a"])
