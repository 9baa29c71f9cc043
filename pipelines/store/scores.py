"""Scores by fingerprint, in SQLite, PostgreSQL or any database that SQLAlchemy opens.

A score is here before its step is committed.

A database that is away for a while, because it is locked, restarting or unreachable, costs a search
time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sql
from filelock import FileLock

from pipelines.errors import StoreUnavailable
from pipelines.store import schema
from pipelines.store.database import Database
from pruning.errors import InputError
from pruning.scoring.arithmetic import Arithmetic
from pruning.scoring.score import BatchScore

SQLITE_TIMEOUT_S = 5.0
"""How long one attempt waits for another process that writes to the same file."""
OPEN_RETRY_S = 3.0
"""How long opening waits for a database that is away: at the start a person is looking."""
CREATION_TIMEOUT_S = 30.0
"""How long opening waits for other processes that open the same SQLite file, one after another."""
SHAPES_PER_QUERY = 500
"""A query takes 999 parameters in old SQLite, 32,766 in new, 65,535 in PostgreSQL."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """What every result of a model depends on.

    Args:
        model: fingerprint of the checkpoint.
        order: fingerprint of the channel order that shapes count in.
        batch_size: sequences that run together.
        arithmetic: of whoever computes it. Versions up to 0.1 knew its device and number of
            threads only; what they stored has keys without the rest, which match no key of today.
    """

    model: str
    order: str
    dtype: str
    batch_size: int
    arithmetic: Arithmetic

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(Computation):
    """Everything besides the shape that a score depends on.

    Args:
        tokens: fingerprint of the calibration set.
        kind: `nll` of the next tokens, or `kl` from the dense model.
        halved: the batch did not fit into memory and was run in two halves.
    """

    tokens: str
    kind: str = "nll"
    halved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerContext(Computation):
    """Everything besides the requests or windows themselves that an answer depends on.

    `batch_size` is 0 for windows, which are not padded to run together.

    Args:
        tokenizer: fingerprint of the tokenizer's files; empty for windows, which are tokens
            already.
        shape: digest of the shape that the model is cut to, empty for the checkpoint as it is.
        max_length: tokens that a request may have; None is what the model can take.
        harness: version of lm-eval; empty for windows.
    """

    tokenizer: str
    shape: str
    max_length: int | None
    harness: str


class ScoreStore:
    """Opens (and creates) the store at an SQLAlchemy URL.

    Args:
        retry_s: how long each method tries again while the database is locked, restarting or
            unreachable.

    Raises:
        InputError: it cannot be opened or written, is not a store of this version, or is damaged.
    """

    def __init__(self, url: str, retry_s: float = 600.0) -> None:
        self._retry_s = retry_s
        self._described: set[Computation] = set()
        self._database = Database(url, sqlite_timeout_s=SQLITE_TIMEOUT_S)
        try:
            with _creating_alone(self._database.sqlite_file):
                self._database.run_with_retry(
                    lambda connection: schema.prepare(connection, self.name),
                    min(retry_s, OPEN_RETRY_S),
                )
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
        return {key: score for key, (score, _) in self.lookup_first([context], shapes).items()}

    def lookup_first(
        self, contexts: Sequence[Context], shapes: Iterable[str]
    ) -> dict[tuple[str, int], tuple[BatchScore, Context]]:
        """The same in several contexts: each score with its context, the first that has it.

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        table, ranks = schema.scores, {each.digest: rank for rank, each in enumerate(contexts)}
        rows = self._read(
            sql.select(
                table.c.context, table.c.shape, table.c.batch, table.c.nll, table.c.num_tokens
            ).where(table.c.context.in_(ranks)),
            table.c.shape,
            shapes,
        )
        return {
            (shape, batch): (
                BatchScore(tuple(self._parsed(nll, "a score")), num_tokens),
                contexts[ranks[digest]],
            )
            for digest, shape, batch, nll, num_tokens in sorted(
                rows, key=lambda row: -ranks[row[0]]
            )
        }

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
            for (shape, batch), score in sorted(scores.items())
        ]
        self._write(context, schema.scores, rows)

    def sync(self) -> None:
        """Waits until the disk has all that was added.

        Raises:
            StoreUnavailable: it does not take it.
        """
        try:
            self._database.sync()
        except OSError as error:
            raise StoreUnavailable(f"store.url: {self._database.explain(error)}") from error

    def lookup_answers(self, context: AnswerContext, tasks: Iterable[str]) -> dict[str, list[Any]]:
        """Known answers by digest of the task.

        Raises:
            StoreUnavailable: at once where another attempt would not help, else after `retry_s`.
        """
        table = schema.answers
        rows = self._read(
            sql.select(table.c.task, table.c.answers).where(table.c.context == context.digest),
            table.c.task,
            tasks,
        )
        return {task: self._parsed(answers, "an answer") for task, answers in rows}

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
        self._write(context, schema.answers, rows)

    def _read(
        self, query: sql.Select[Any], key: sql.Column[Any], wanted: Iterable[str]
    ) -> list[Any]:
        """The rows of `query` with one of the wanted keys."""
        keys = list(dict.fromkeys(wanted))
        queries = [
            query.where(key.in_(keys[start : start + SHAPES_PER_QUERY]))
            for start in range(0, len(keys), SHAPES_PER_QUERY)
        ]
        return self._run(
            lambda connection: [row for each in queries for row in connection.execute(each)]
        )

    def _write(
        self, context: Computation, table: sql.Table, rows: Sequence[Mapping[str, object]]
    ) -> None:
        def write(connection: sql.Connection) -> None:
            if context not in self._described:
                description = json.dumps(asdict(context))
                described = [{"digest": context.digest, "description": description}]
                schema.insert_new(connection, schema.contexts, described)
            schema.insert_new(connection, table, rows)

        self._run(write)
        self._described.add(context)

    def _run(self, work: Callable[[sql.Connection], _T]) -> _T:
        """One transaction, tried again while the database is away."""
        try:
            return self._database.run_with_retry(work, self._retry_s)
        except sql.exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"store.url: {self._database.explain(error)}") from error

    def _parsed(self, text: str, what: str) -> list[Any]:
        try:
            found: list[Any] = json.loads(text)
        except ValueError as error:
            raise StoreUnavailable(
                f"store.url: {self.name}: {what} is damaged ({error}); restore the store, or "
                "delete the rows that are"
            ) from error
        return found


@contextmanager
def _creating_alone(file: Path | None) -> Iterator[None]:
    """Several processes may create the same SQLite file at once."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=CREATION_TIMEOUT_S):
        yield
