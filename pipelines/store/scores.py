"""Scores by fingerprint, in SQLite, PostgreSQL or any database that SQLAlchemy opens.

A score is here before its step is committed.

A database that is away for a while, because it is locked, restarting or unreachable, costs a search
time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite

from pipelines.errors import StoreUnavailable
from pipelines.store.database import Database
from pruning.errors import InputError

SCHEMA_VERSION = 1
SQLITE_TIMEOUT_S = 5.0
"""How long one attempt waits for another process that writes to the same file."""
OPEN_RETRY_S = 3.0
"""How long opening waits for a database that is away: at the start a person is looking."""
CREATION_TIMEOUT_S = 30.0
"""How long opening waits for other processes that open the same SQLite file, one after another."""
SHAPES_PER_QUERY = 500
"""A query takes 999 parameters in old SQLite, 32,766 in new, 65,535 in PostgreSQL."""

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
_answers = sql.Table(
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
        return _digest(self)


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """Everything besides the requests or windows themselves that an answer depends on.

    Args:
        model: fingerprint of the checkpoint.
        tokenizer: fingerprint of the tokenizer's files; empty for windows, which are tokens
            already.
        shape: digest of the shape that it is cut to, empty for the checkpoint as it is; and
            `order`, the fingerprint of its channel order.
        batch_size: requests that are padded to run together; 0 for windows, which are not.
        max_length: tokens that a request may have; None is what the model can take.
        harness: version of lm-eval; empty for windows.
    """

    model: str
    tokenizer: str
    shape: str
    order: str
    dtype: str
    device: str
    batch_size: int
    num_threads: int
    max_length: int | None
    harness: str

    @property
    def digest(self) -> str:
        return _digest(self)


@dataclass(frozen=True, slots=True)
class BatchScore:
    """NLL of each sequence of one batch, in nats summed over `num_tokens` predicted tokens."""

    nll: tuple[float, ...]
    num_tokens: int


class ScoreStore:
    """Opens (and creates) the store at an SQLAlchemy URL.

    Args:
        retry_s: how long `lookup` and `add` try again while the database is locked, restarting or
            unreachable.

    Raises:
        InputError: it cannot be opened or written, is not a store of this version, or is damaged.
    """

    def __init__(self, url: str, retry_s: float = 600.0) -> None:
        self._retry_s = retry_s
        self._described: set[Context | AnswerContext] = set()
        self._database = Database(url, sqlite_timeout_s=SQLITE_TIMEOUT_S)
        try:
            with _creating_alone(self._database.sqlite_file):
                self._database.patiently(self._prepare, min(retry_s, OPEN_RETRY_S))
        except (sql.exc.SQLAlchemyError, OSError) as error:
            raise InputError(f"store.url: {self._database.explain(error)}") from error

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._database.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def lookup(self, context: Context, shapes: Iterable[str]) -> dict[tuple[str, int], BatchScore]:
        """Known scores by (shape digest, batch).

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        wanted = list(dict.fromkeys(shapes))
        columns = (_scores.c.shape, _scores.c.batch, _scores.c.nll, _scores.c.num_tokens)
        known = sql.select(*columns).where(_scores.c.context == context.digest)

        rows = self._read(known, _scores.c.shape, wanted)
        try:
            return {
                (shape, batch): BatchScore(tuple(json.loads(nll)), num_tokens)
                for shape, batch, nll, num_tokens in rows
            }
        except ValueError as error:
            raise StoreUnavailable(
                f"store.url: {self.name}: a score is damaged ({error}); restore the store, or "
                "delete the rows that are"
            ) from error

    def add(self, context: Context, scores: Mapping[tuple[str, int], BatchScore]) -> None:
        """Writes scores in one transaction.

        One that is there already stays: both were computed from the same key.

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        digest = context.digest
        # Sorted, so that two drivers that write the same keys lock them in the same order and
        # cannot wait for each other.
        rows = [
            {
                "context": digest,
                "shape": shape,
                "batch": batch,
                "nll": json.dumps(score.nll),
                "num_tokens": score.num_tokens,
            }
            for (shape, batch), score in sorted(scores.items(), key=lambda item: item[0])
        ]

        self._write(context, _scores, rows)

    def lookup_answers(self, context: AnswerContext, tasks: Iterable[str]) -> dict[str, list[Any]]:
        """Known answers by digest of the task.

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        wanted = list(dict.fromkeys(tasks))
        known = sql.select(_answers.c.task, _answers.c.answers).where(
            _answers.c.context == context.digest
        )
        rows = self._read(known, _answers.c.task, wanted)
        try:
            return {task: json.loads(answers) for task, answers in rows}
        except ValueError as error:
            raise StoreUnavailable(
                f"store.url: {self.name}: an answer is damaged ({error}); restore the store, or "
                "delete the rows that are"
            ) from error

    def add_answers(self, context: AnswerContext, answers: Mapping[str, Sequence[Any]]) -> None:
        """Writes answers in one transaction.

        One that is there already stays: both were computed from the same key.

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        rows = [
            {"context": context.digest, "task": task, "answers": json.dumps(answers[task])}
            for task in sorted(answers)
        ]
        self._write(context, _answers, rows)

    def _read(
        self, query: sql.Select[Any], key: sql.Column[Any], wanted: Sequence[str]
    ) -> list[Any]:
        """The rows of `query` with one of the wanted keys."""

        def read(connection: sql.Connection) -> list[Any]:
            starts = range(0, len(wanted), SHAPES_PER_QUERY)
            queries = [
                query.where(key.in_(wanted[start : start + SHAPES_PER_QUERY])) for start in starts
            ]
            return [row for query in queries for row in connection.execute(query)]

        try:
            return self._database.patiently(read, self._retry_s)
        except sql.exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"store.url: {self._database.explain(error)}") from error

    def _write(
        self,
        context: Context | AnswerContext,
        table: sql.Table,
        rows: Sequence[Mapping[str, object]],
    ) -> None:
        def write(connection: sql.Connection) -> None:
            if context not in self._described:
                self._insert_new(
                    connection,
                    _contexts,
                    [{"digest": context.digest, "description": json.dumps(asdict(context))}],
                )
            self._insert_new(connection, table, rows)

        try:
            self._database.patiently(write, self._retry_s)
        except sql.exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"store.url: {self._database.explain(error)}") from error
        self._described.add(context)

    def _prepare(self, connection: sql.Connection) -> None:
        """Checks the version, makes what is missing, and shows that the store can be written."""
        if connection.dialect.name == "postgresql":
            connection.execute(
                sql.select(sql.func.pg_advisory_xact_lock(_CREATION_LOCK))
            )  # until the transaction ends, however it ends
        found = None
        if sql.inspect(connection).has_table(_versions.name):
            found = connection.execute(sql.select(sql.func.max(_versions.c.version))).scalar()
        if found not in (None, SCHEMA_VERSION):
            raise InputError(
                f"store.url: {self.name} has schema version {found}, this program writes "
                f"{SCHEMA_VERSION}; use another one"
            )
        _metadata.create_all(connection)
        self._insert_new(connection, _versions, [{"version": SCHEMA_VERSION}])

    def _insert_new(
        self, connection: sql.Connection, table: sql.Table, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """Inserts what is not there.

        SQLite and PostgreSQL do so in one statement; elsewhere rows that are there are left out
        first.
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


def _digest(context: Context | AnswerContext) -> str:
    return hashlib.sha256(json.dumps(asdict(context), sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _creating_alone(file: Path | None) -> Iterator[None]:
    """Several processes may create the same SQLite file at once."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=CREATION_TIMEOUT_S):
        yield
