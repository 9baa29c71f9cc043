"""Scores by fingerprint, in SQLite or any database that SQLAlchemy opens. A score is here before its step is committed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sql
from filelock import FileLock
from sqlalchemy.engine import make_url

from pruning.errors import InputError

SCHEMA_VERSION = 1
SQLITE_TIMEOUT_S = 30.0
"""How long to wait for another process that writes to the same file."""

_metadata = sql.MetaData()
_contexts = sql.Table(
    "contexts",
    _metadata,
    sql.Column("digest", sql.String(32), primary_key=True),
    sql.Column("description", sql.Text, nullable=False, comment="JSON of the Context"),
)
_scores = sql.Table(
    "scores",
    _metadata,
    sql.Column("context", sql.String(32), primary_key=True),
    sql.Column("shape", sql.String(32), primary_key=True, comment="digest of the shape"),
    sql.Column("batch", sql.Integer, primary_key=True),
    sql.Column("nll", sql.Text, nullable=False, comment="JSON list: nats summed over each sequence"),
    sql.Column("num_tokens", sql.Integer, nullable=False, comment="predicted tokens of each sequence"),
)
_versions = sql.Table("schema_version", _metadata, sql.Column("version", sql.Integer, primary_key=True))


@dataclass(frozen=True, slots=True)
class Context:
    """Everything besides the shape that a score depends on."""

    model: str
    tokens: str
    order: str
    dtype: str
    device: str
    batch_size: int
    num_threads: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class BatchScore:
    """NLL of each sequence of one batch, in nats summed over `num_tokens` predicted tokens."""

    nll: tuple[float, ...]
    num_tokens: int


class ScoreStore:
    """Opens (and creates) the store at an SQLAlchemy URL.

    Raises:
        InputError: it cannot be opened, is not a store of this version, or is damaged.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.name = parsed.render_as_string(hide_password=True)
        file = Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:") else None
        try:
            self._engine = sql.create_engine(parsed, connect_args={"timeout": SQLITE_TIMEOUT_S} if file else {})
            if file is None:
                found = self._prepare()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{file}.lock"):  # several processes may create the same file at once
                    found = self._prepare()
        except (sql.exc.SQLAlchemyError, OSError, ImportError) as error:
            raise self._unusable(error) from error
        if found not in (None, SCHEMA_VERSION):
            raise InputError(f"store.url: {self.name} has schema version {found}, this program writes {SCHEMA_VERSION}; use another file")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def _prepare(self) -> int | None:
        """Makes what is missing; the schema version that was there, None in a new store."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            _metadata.create_all(connection)
            found: int | None = connection.execute(sql.select(_versions.c.version)).scalar()
            if found is None:
                connection.execute(sql.insert(_versions).values(version=SCHEMA_VERSION))
        return found

    def lookup(self, context: Context, shapes: Iterable[str]) -> dict[tuple[str, int], BatchScore]:
        """Known scores by (shape digest, batch)."""
        wanted = list(shapes)
        query = sql.select(_scores.c.shape, _scores.c.batch, _scores.c.nll, _scores.c.num_tokens)
        query = query.where(_scores.c.context == context.digest, _scores.c.shape.in_(wanted))
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
        except sql.exc.SQLAlchemyError as error:
            raise self._unusable(error) from error
        return {(shape, batch): BatchScore(tuple(json.loads(nll)), num_tokens) for shape, batch, nll, num_tokens in rows}

    def add(self, context: Context, scores: Mapping[tuple[str, int], BatchScore]) -> None:
        """Writes scores in one transaction. One that is there already stays: both were computed from the same key."""
        rows = [
            {"context": context.digest, "shape": shape, "batch": batch, "nll": json.dumps(score.nll), "num_tokens": score.num_tokens}
            for (shape, batch), score in scores.items()
        ]
        try:
            with self._engine.begin() as connection:
                self._insert_new(connection, _contexts, [{"digest": context.digest, "description": json.dumps(asdict(context))}])
                self._insert_new(connection, _scores, rows)
        except sql.exc.SQLAlchemyError as error:
            raise self._unusable(error) from error

    def _insert_new(self, connection: sql.Connection, table: sql.Table, rows: Sequence[Mapping[str, object]]) -> None:
        """Inserts what is not there. SQLite and PostgreSQL do so in one statement; elsewhere rows that are there are left out first."""
        if self._engine.dialect.name in ("sqlite", "postgresql"):
            from sqlalchemy.dialects import postgresql, sqlite

            insert = sqlite.insert(table) if self._engine.dialect.name == "sqlite" else postgresql.insert(table)
            connection.execute(insert.on_conflict_do_nothing(), list(rows))
            return
        keys = [column.name for column in table.primary_key]
        for row in rows:
            present = sql.select(sql.literal(1)).where(*(table.c[key] == row[key] for key in keys))
            if connection.execute(present).first() is None:
                connection.execute(sql.insert(table).values(row))

    def _unusable(self, error: Exception) -> InputError:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        advice = {
            "locked": "another process is writing to it: wait for it, or give this run its own store.url",
            "not a database": "the file is something else: give another store.url",
            "malformed": "the file is damaged: restore it, or move it away and start again (its scores will be computed anew)",
            "full": "the disk is full: free space and run the same command again, it goes on where it was",
            "readonly": "it cannot be written: check permissions, or give another store.url",
            "unable to open": "it cannot be created or read there: check the folder and permissions",
        }
        hint = next((text for key, text in advice.items() if key in reason.lower()), "check store.url")
        return InputError(f"store.url: {self.name}: {reason}; {hint}")
