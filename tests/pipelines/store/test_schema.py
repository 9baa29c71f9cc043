"""The tables of a store, in SQLite and in what only looks like another database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import sqlalchemy as sql
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from pipelines.store import schema
from pruning.errors import InputError
from tests.pipelines.store.contexts import CONTEXT

DIGEST = len(CONTEXT.digest)
POSTGRESQL: sql.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


@pytest.fixture
def connection() -> Iterator[sql.Connection]:
    with sql.create_engine("sqlite://").connect() as connection:
        yield connection


def statements(connection: sql.Connection) -> list[str]:
    """What a connection is asked from here on."""
    asked: list[str] = []
    sql.event.listen(connection, "before_cursor_execute", lambda *given: asked.append(given[2]))
    return asked


def test_no_value_may_be_missing_and_digests_have_their_length(connection: sql.Connection) -> None:
    schema.prepare(connection, "memory")
    found = sql.inspect(connection)
    columns = {
        f"{table}.{column['name']}": column
        for table in found.get_table_names()
        for column in found.get_columns(table)
    }
    assert len(columns) == 11
    assert [name for name, column in columns.items() if column["nullable"]] == []
    texts = {name: str(column["type"]) for name, column in columns.items()}
    assert {name for name, text in texts.items() if text == f"VARCHAR({DIGEST})"} == {
        "contexts.digest",
        "scores.context",
        "scores.shape",
        "answers.context",
        "answers.task",
    }
    assert not any(re.search(r"\d", text) for text in set(texts.values()) - {f"VARCHAR({DIGEST})"})
    assert found.get_pk_constraint("scores")["constrained_columns"] == ["shape", "context", "batch"]
    assert found.get_pk_constraint("answers")["constrained_columns"] == ["task", "context"]


def test_a_row_that_is_there_stays_in_a_database_without_a_statement_for_it(
    connection: sql.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.prepare(connection, "memory")
    monkeypatch.setattr(connection.dialect, "name", "other")

    def insert(*keys: tuple[str, str], answers: str) -> None:
        rows = [{"task": task, "context": context, "answers": answers} for task, context in keys]
        schema.insert_new(connection, schema.answers, rows)

    asked = statements(connection)
    insert(("t", "c"), ("t", "d"), answers="first")
    insert(("t", "c"), ("u", "c"), ("u", "d"), answers="second")
    assert not any("ON CONFLICT" in statement for statement in asked)
    rows = connection.execute(sql.select(schema.answers)).all()
    assert {(row.task, row.context): row.answers for row in rows} == {
        ("t", "c"): "first",
        ("t", "d"): "first",
        ("u", "c"): "second",
        ("u", "d"): "second",
    }


def test_rows_that_may_be_there_are_one_statement(connection: sql.Connection) -> None:
    """Nobody else can come between a look and the insert."""
    schema.prepare(connection, "memory")
    asked = statements(connection)
    rows = [{"task": task, "context": "c", "answers": "[]"} for task in "tu"]
    schema.insert_new(connection, schema.answers, rows)
    schema.insert_new(connection, schema.answers, [])
    [statement] = asked
    assert statement.startswith("INSERT INTO answers ")
    assert statement.endswith(" ON CONFLICT DO NOTHING")


def test_postgresql_takes_rows_that_may_be_there_in_one_statement() -> None:
    asked: list[str] = []

    def execute(statement: sql.Insert, rows: list[object]) -> None:
        asked.append(f"{statement.compile(dialect=POSTGRESQL)} of {len(rows)}")

    connection = SimpleNamespace(dialect=POSTGRESQL, execute=execute)
    rows = [{"digest": digest, "description": "{}"} for digest in "ab"]
    schema.insert_new(connection, schema.contexts, rows)  # type: ignore[arg-type]
    [statement] = asked
    assert re.fullmatch(r"INSERT INTO contexts .* ON CONFLICT DO NOTHING of 2", statement)


def test_no_number_is_made_up_by_postgresql() -> None:
    tables = schema.contexts.metadata.sorted_tables
    made = [str(CreateTable(each).compile(dialect=POSTGRESQL)) for each in tables]
    assert len(made) == 4
    assert not any("SERIAL" in statement for statement in made)


def test_drivers_create_tables_in_postgresql_one_after_another(
    connection: sql.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a lock whose number no version may change: the others would not wait for it."""
    taken: list[int] = []
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.create_function("pg_advisory_xact_lock", 1, taken.append)
    monkeypatch.setattr(connection.dialect, "name", "postgresql")
    asked = statements(connection)
    schema.prepare(connection, "memory")
    assert taken == [55_671_403]
    assert asked[0].startswith("SELECT pg_advisory_xact_lock(")
    assert any(statement.lstrip().startswith("CREATE TABLE") for statement in asked[1:])


@pytest.mark.parametrize("version", [0, 2])
def test_tables_of_another_version_are_left_alone(connection: sql.Connection, version: int) -> None:
    connection.execute(sql.text("create table schema_version (version integer primary key)"))
    connection.execute(sql.text(f"insert into schema_version values ({version})"))
    with pytest.raises(
        InputError,
        match=rf"^store\.url: memory has schema version {version}, this program writes 1; use",
    ):
        schema.prepare(connection, "memory")
    assert sql.inspect(connection).get_table_names() == ["schema_version"]
