"""The tables of a store, made where they are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite

from pruning.errors import InputError

SCHEMA_VERSION = 1

_metadata = sql.MetaData()
contexts = sql.Table(
    "contexts",
    _metadata,
    sql.Column("digest", sql.String(32), primary_key=True),
    sql.Column("description", sql.Text, nullable=False, comment="JSON of the Context"),
)
scores = sql.Table(
    "scores",
    _metadata,
    sql.Column("context", sql.String(32)),
    sql.Column("shape", sql.String(32), comment="digest of the shape"),
    sql.Column("batch", sql.Integer),
    sql.Column(
        "nll", sql.Text, nullable=False, comment="JSON list: nats summed over each sequence"
    ),
    sql.Column(
        "num_tokens", sql.Integer, nullable=False, comment="predicted tokens of each sequence"
    ),
    # The shape comes first: with the context in front, a PostgreSQL that has no statistics yet
    # reads the whole context for every lookup.
    sql.PrimaryKeyConstraint("shape", "context", "batch"),
)
answers = sql.Table(
    "answers",
    _metadata,
    sql.Column("context", sql.String(32)),
    sql.Column(
        "task",
        sql.String(32),
        comment="digest of the requests or windows that were answered together",
    ),
    sql.Column(
        "answers", sql.Text, nullable=False, comment="JSON list, one for each request or window"
    ),
    sql.PrimaryKeyConstraint("task", "context"),
)
_versions = sql.Table(
    "schema_version",
    _metadata,
    sql.Column("version", sql.Integer, primary_key=True, autoincrement=False),
)

_CREATION_LOCK = 55_671_403
"""Key of the advisory lock under which drivers create the schema, one after another.

Any number would do that is always the same.
"""


def prepare(connection: sql.Connection, name: str) -> None:
    """Checks the version, makes what is missing, and shows that the store can be written.

    Args:
        name: of the database, for the message.

    Raises:
        InputError: its tables are of another version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(
            sql.select(sql.func.pg_advisory_xact_lock(_CREATION_LOCK))
        )  # until the transaction ends, however it ends
    found = None
    if sql.inspect(connection).has_table(_versions.name):
        found = connection.execute(sql.select(sql.func.max(_versions.c.version))).scalar()
    if found not in (None, SCHEMA_VERSION):
        raise InputError(
            f"store.url: {name} has schema version {found}, this program writes "
            f"{SCHEMA_VERSION}; use another one"
        )
    _metadata.create_all(connection)
    insert_new(connection, _versions, [{"version": SCHEMA_VERSION}])


def insert_new(
    connection: sql.Connection, table: sql.Table, rows: Sequence[Mapping[str, object]]
) -> None:
    """Inserts what is not there.

    SQLite and PostgreSQL do so in one statement; elsewhere rows that are there are left out first.
    """
    if not rows:
        return
    if connection.dialect.name in ("sqlite", "postgresql"):
        insert = (
            sqlite.insert(table)
            if connection.dialect.name == "sqlite"
            else postgresql.insert(table)
        )
        connection.execute(insert.on_conflict_do_nothing(), list(rows))
        return
    keys = [column.name for column in table.primary_key]
    for row in rows:
        present = sql.select(sql.literal(1)).where(*(table.c[key] == row[key] for key in keys))
        if connection.execute(present).first() is None:
            connection.execute(sql.insert(table).values(row))
