"""The store in a real PostgreSQL, which is crashed, locked and taken away."""

from __future__ import annotations

import logging
import math
import shlex
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from pipelines.errors import StoreUnavailable
from pipelines.runs.journal import Journal
from pipelines.store.scores import ScoreStore
from pruning.errors import InputError
from pruning.scoring.score import BatchScore
from tests.pipelines.conftest import Search
from tests.pipelines.store.contexts import CONTEXT
from tests.pipelines.store.test_store import write_at_once
from tests.postgres import PASSWORD, PostgresServer, postgres

__all__ = ["postgres"]

pytestmark = pytest.mark.postgres

SPELLINGS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD))


def database_of(url: str) -> str:
    return url.rsplit("/", 1)[1]


def without_password(text: str) -> bool:
    return not any(spelling in text for spelling in SPELLINGS)


def score(number: float) -> BatchScore:
    return BatchScore((number, number / 7), 31)


@pytest.fixture
def stopped_later(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, for tests that stop it."""
    yield postgres
    postgres.stop()
    postgres.start()


def test_scores_come_back_to_the_last_bit(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    scores = {
        ("a", 0): BatchScore((math.pi * 1e3, 1 / 3, 5e-324, 1.7976931348623157e308), 31),
        ("a", 1): BatchScore((0.1 + 0.2, math.inf, -math.inf), 31),
    }
    with ScoreStore(url) as store:
        store.add(CONTEXT, scores | {("b", 0): BatchScore((math.nan,), 31)})
        store.add(CONTEXT, {("a", 0): score(1)})
    with ScoreStore(url) as store:
        assert store.lookup(CONTEXT, ["a", "c"]) == scores
        assert math.isnan(store.lookup(CONTEXT, ["b"])["b", 0].nll[0])
    assert without_password(store.name)


def test_several_processes_create_and_write_at_once(postgres: PostgresServer) -> None:
    write_at_once(postgres.new_database(), num_writers=6)


def test_drivers_see_each_others_scores(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with ScoreStore(url) as one, ScoreStore(url) as other:
        one.add(CONTEXT, {("a", 0): score(1)})
        assert other.lookup(CONTEXT, ["a"]) == {("a", 0): score(1)}
        other.add(CONTEXT, {("a", 0): score(2), ("b", 0): score(3)})
        assert one.lookup(CONTEXT, ["a", "b"]) == {("a", 0): score(1), ("b", 0): score(3)}


def test_a_lookup_reads_only_what_it_looks_up(postgres: PostgresServer) -> None:
    """Also before PostgreSQL has gathered statistics: a search asks for 60 shapes of hundreds of
    thousands.
    """
    url = postgres.new_database()
    with ScoreStore(url) as store:
        many = (
            f"INSERT INTO scores SELECT '{CONTEXT.digest}', 'shape' || i / 2, i % 2, '[1.0]', "
            "31 FROM generate_series(0, 49999) i"
        )
        postgres.execute(many, database_of(url))
        found = store.lookup(CONTEXT, (f"shape{number}" for number in range(20_000, 30_000)))
        assert found == {
            (f"shape{number}", batch): BatchScore((1.0,), 31)
            for number in range(20_000, 25_000)
            for batch in range(2)
        }
    wanted = ", ".join(f"'shape{number}'" for number in range(60))
    plan = postgres.execute(
        f"EXPLAIN SELECT * FROM scores WHERE context = '{CONTEXT.digest}' AND shape IN ({wanted})",
        database_of(url),
    )
    assert any(
        "Index Cond" in line and "shape" in line and "context" in line for (line,) in plan
    ), plan


def test_a_store_of_another_version_is_left_alone(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    postgres.execute("CREATE TABLE schema_version (version integer primary key)", database_of(url))
    postgres.execute("INSERT INTO schema_version VALUES (99)", database_of(url))
    with pytest.raises(
        InputError, match=f"{database_of(url)} has schema version 99, this program writes 1"
    ):
        ScoreStore(url)
    assert postgres.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database_of(url)
    ) == [("schema_version",)]


def test_what_cannot_be_opened_is_said_at_once(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    reader = postgres.new_database()
    ScoreStore(reader)
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'wr0ng-W0rd'")
    for url, says in {
        postgres.url_of(
            "postgres", password="wr0ng-W0rd"
        ): 'password authentication failed for user "pruner"; check user and password',
        postgres.url_of("nowhere"): 'database "nowhere" does not exist; create it first',
        postgres.url_of(
            database_of(reader), user="reader", password="wr0ng-W0rd"
        ): "permission denied for table schema_version; check what this user may do",
        postgres.url + "?sslmode=require": "server does not support SSL",
    }.items():
        started = time.monotonic()
        with pytest.raises(InputError, match=r"^store\.url: ") as caught:
            ScoreStore(url, retry_s=600)
        assert time.monotonic() - started < 2
        assert says in str(caught.value)
        whole = caplog.text + "".join(traceback.format_exception(caught.value))
        assert "wr0ng-W0rd" not in whole
        assert without_password(whole)
    assert caplog.records == []


def test_a_server_that_is_away_at_the_start(stopped_later: PostgresServer) -> None:
    stopped_later.stop()
    started = time.monotonic()
    with pytest.raises(
        InputError, match="Connection refused.*; no server is running there"
    ) as caught:
        ScoreStore(stopped_later.url, retry_s=600)
    assert 2 < time.monotonic() - started < 8
    assert without_password("".join(traceback.format_exception(caught.value)))


def test_a_crash_and_restart_in_the_middle(
    stopped_later: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that was confirmed is lost, and a person reads of it once."""
    confirmed: dict[tuple[str, int], BatchScore] = {}
    restarted = threading.Event()

    def crash() -> None:
        time.sleep(0.5)
        stopped_later.stop(immediate=True)
        time.sleep(3)
        stopped_later.start()
        restarted.set()

    with (
        ScoreStore(stopped_later.new_database(), retry_s=60) as store,
        caplog.at_level(logging.INFO),
    ):
        crashing = threading.Thread(target=crash)
        crashing.start()
        number = after = 0
        while after < 50:
            scores = {(f"shape{number}", batch): score(number) for batch in range(3)}
            store.add(CONTEXT, scores)
            confirmed |= scores
            assert store.lookup(CONTEXT, [f"shape{number}"]) == scores
            number += 1
            after += restarted.is_set()
        crashing.join()
        assert number > after
        assert store.lookup(CONTEXT, [shape for shape, _ in confirmed]) == confirmed
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"], said
    assert "trying again for up to 60 s" in said[0][1]
    assert "back after" in said[1][1]
    assert without_password(caplog.text)


def test_a_server_that_never_comes_back(
    stopped_later: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with ScoreStore(stopped_later.new_database(), retry_s=2) as store:
        store.add(CONTEXT, {("a", 0): score(1)})
        stopped_later.stop(immediate=True)
        for attempt in (
            lambda: store.lookup(CONTEXT, ["a"]),
            lambda: store.add(CONTEXT, {("b", 0): score(2)}),
        ):
            started = time.monotonic()
            with pytest.raises(
                StoreUnavailable, match="Connection refused.*; no server is running there"
            ) as caught:
                attempt()
            assert 2 <= time.monotonic() - started < 5
            assert without_password(caplog.text + "".join(traceback.format_exception(caught.value)))
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        stopped_later.start()
        assert store.lookup(CONTEXT, ["a", "b"]) == {("a", 0): score(1)}


def test_another_driver_that_hangs_with_the_same_keys(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.store.database.LOCK_TIMEOUT_S", 1)
    url = postgres.new_database()
    with (
        ScoreStore(url, retry_s=60) as store,
        psycopg.connect(url) as other,
        caplog.at_level(logging.INFO),
    ):
        other.execute("INSERT INTO scores VALUES (%s, 'a', 0, '[4.0]', 31)", [CONTEXT.digest])
        release = threading.Timer(2, other.commit)
        release.start()
        store.add(CONTEXT, {("a", 0): score(1), ("b", 0): score(2)})
        release.join()
        assert store.lookup(CONTEXT, ["a", "b"]) == {
            ("a", 0): BatchScore((4.0,), 31),
            ("b", 0): score(2),
        }
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "lock timeout" in caplog.records[0].getMessage()


def test_faults_that_waiting_does_not_mend(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    with ScoreStore(url, retry_s=600) as store:
        store.add(CONTEXT, {("a", 0): score(1)})
        postgres.execute(
            f"ALTER DATABASE {database_of(url)} SET default_transaction_read_only = on"
        )
        store._database._engine.dispose()  # the setting holds for new connections
        with pytest.raises(StoreUnavailable, match="read-only transaction; it cannot be written"):
            store.add(CONTEXT, {("b", 0): score(2)})
        with pytest.raises(InputError, match="read-only transaction; it cannot be written"):
            ScoreStore(url)
        postgres.execute(f"ALTER DATABASE {database_of(url)} RESET default_transaction_read_only")
        store._database._engine.dispose()
        postgres.execute("DROP TABLE scores", database_of(url))
        with pytest.raises(
            StoreUnavailable,
            match='relation "scores" does not exist; it is not what it was when the search began',
        ):
            store.lookup(CONTEXT, ["a"])
    assert caplog.records == []


def test_the_command(
    postgres: PostgresServer,
    search: Search,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given = [*(word for word in arguments if not word.startswith("store.url=")), "store=postgresql"]
    monkeypatch.delenv("MULTIPRUNER_STORE_URL", raising=False)
    refused = search(*given, bare=True)
    assert refused.status == 2
    assert (
        "error: store.url: empty; put it into the environment, as "
        "MULTIPRUNER_STORE_URL=postgresql://"
    ) in refused.output
    monkeypatch.setenv("MULTIPRUNER_STORE_URL", postgres.new_database())
    first = search(*given, bare=True)
    assert first.status == 0, first.output
    again = search(*given, folder="again", bare=True)
    assert again.trajectory == first.trajectory
    assert again.summary["evaluations"]["scored"] == 0
    shown = first.output + again.output
    written = [
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    ]
    assert "***" in (first.folder / "config.yaml").read_text()
    assert all(without_password(text) for text in [shown, *written])


def test_the_command_that_is_printed_for_going_on(
    postgres: PostgresServer,
    search: Search,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is printed: the variable that holds the password is set already."""
    given = [*(word for word in arguments if not word.startswith("store.url=")), "store=postgresql"]
    url = postgres.new_database()
    monkeypatch.setenv("MULTIPRUNER_STORE_URL", url)
    append = Journal.append

    def interrupted(self: Journal, line: dict[str, Any]) -> None:
        append(self, line)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    stopped = search(*given, bare=True)
    monkeypatch.setattr(Journal, "append", append)
    assert stopped.status == 130
    words = shlex.split(stopped.output.rpartition("To go on: ")[2])
    assert words == ["multipruner", "prune", "resume=true", f"output_dir={stopped.folder}"]
    resumed = search(*words[2:], bare=True)
    assert resumed.status == 0, resumed.output
    [[count]] = postgres.execute("SELECT count(*) FROM scores", database_of(url))
    assert count > resumed.summary["evaluations"]["scored"] > 0
    assert without_password(stopped.output + resumed.output)
