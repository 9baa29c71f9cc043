"""How databases are opened: files, options and settings of connections, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import sqlalchemy as sql

from pipelines.store.database import Database, _set_up_postgresql
from pruning.errors import InputError

POSTGRESQL = "postgresql+psycopg://u:p@host/scores"


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////data/scores.db", "/data/scores.db"),
        ("sqlite:///scores.db", "scores.db"),
        ("sqlite:///file:/data/my%20scores.db?mode=ro&uri=true", "/data/my scores.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file::memory:?uri=true", None),
        (POSTGRESQL, None),
    ],
)
def test_the_file_of_a_url(url: str, file: str | None) -> None:
    assert Database(url, sqlite_timeout_s=1).sqlite_file == (file and Path(file))


def test_a_port_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"^store\.url: .*; check store\.url$"):
        Database("postgresql+psycopg://u:p@host:port/scores", sqlite_timeout_s=1)


class Connection:
    """A connection of PostgreSQL that writes down what it is told, and its own cursor."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def cursor(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str) -> None:
        self.told.append(statement)

    def commit(self) -> None:
        self.told.append("commit")


def test_a_connection_of_postgresql_waits_for_nobody_for_long() -> None:
    """For a lock it waits less than a statement may take, and that less than a transaction."""
    database = Database(POSTGRESQL, sqlite_timeout_s=1)
    assert sql.event.contains(database._engine, "connect", _set_up_postgresql)
    connection = Connection()
    _set_up_postgresql(connection, None)
    assert connection.told == [
        "SET lock_timeout = '5s'",
        "SET statement_timeout = '30s'",
        "SET idle_in_transaction_session_timeout = '60s'",
        "commit",
    ]


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What engines are created with, whether their driver is installed or not."""
    given: list[dict[str, Any]] = []
    engine = sql.create_engine("sqlite://")

    def create(_url: sql.URL, **options: Any) -> sql.Engine:
        given.append(options)
        return engine

    monkeypatch.setattr(sql, "create_engine", create)
    return given


def test_a_server_that_vanished_is_noticed_within_20_seconds(
    created: list[dict[str, Any]],
) -> None:
    Database(POSTGRESQL, sqlite_timeout_s=1)
    [options] = created
    given = options["connect_args"]
    assert given["connect_timeout"] == 5
    noticed_s = given["keepalives_idle"] + given["keepalives_interval"] * given["keepalives_count"]
    assert noticed_s == given["tcp_user_timeout"] / 1000 == 20
    assert given["application_name"] == "multipruner"
    assert options["pool_pre_ping"], "one that vanished while nobody used it is opened again"
    assert options["hide_parameters"], "an error would hold hundreds of scores"


@pytest.mark.parametrize(
    ("url", "num_options"),
    [
        ("postgresql+psycopg://host/scores", 6),
        ("postgresql+psycopg2://host/scores?connect_timeout=9", 5),
        ("postgresql+pg8000://host/scores", 0),
        ("mysql+pymysql://host/scores", 0),
    ],
)
def test_options_are_those_of_libpq_that_the_url_leaves_open(
    created: list[dict[str, Any]], url: str, num_options: int
) -> None:
    Database(url, sqlite_timeout_s=1)
    [options] = created
    assert len(options["connect_args"]) == num_options


def test_a_file_waits_for_others_as_long_as_it_is_told_to(created: list[dict[str, Any]]) -> None:
    Database("sqlite:////data/scores.db", sqlite_timeout_s=7)
    [options] = created
    assert options["connect_args"] == {"timeout": 7}
    assert options["hide_parameters"], "an error would hold hundreds of scores"
