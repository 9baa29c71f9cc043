"""A database at an SQLAlchemy URL: how it is opened, when to wait for it, and what its errors mean.

No secret of the URL is in any of them.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import sqlalchemy as sql
from sqlalchemy.engine import URL, make_url
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from pipelines.config.redaction import masked_url, without_secrets
from pruning import disk
from pruning.errors import InputError

log = logging.getLogger(__name__)
logging.getLogger("psycopg").setLevel(
    logging.ERROR
)  # it warns of a lost connection on its own, besides the error that is reported here

MAX_WAIT_S = 10.0
"""Longest pause between two attempts."""
LOCK_TIMEOUT_S = 5
"""How long one attempt waits for another driver's transaction in PostgreSQL."""

_LIBPQ: Mapping[str, object] = {
    "application_name": "multipruner",
    "connect_timeout": 5,
    # A connection whose other end vanished silently, such as a machine that lost its power,
    # is noticed within 20 s.
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Options of PostgreSQL connections, unless the URL sets them."""

_ADVICE = {
    "database is locked": (
        "another process is writing to it: wait for it, or give this run its own store.url"
    ),
    "lock timeout": "another process is writing to it and does not end: look at pg_stat_activity",
    "could not be acquired": (
        "other processes are opening it: wait for them, or give this run its own store.url"
    ),
    "not a database": "the file is something else: give another store.url",
    "malformed": (
        "the file is damaged: restore it, or move it away and start again (its scores "
        "will be computed anew)"
    ),
    "full": "the disk is full: free space and run the same command again, it goes on where it was",
    "no space left": (
        "the disk of the server is full: free space and run the same command again, "
        "it goes on where it was"
    ),
    "readonly": "it cannot be written: check permissions, or give another store.url",
    "read-only": "it cannot be written: check permissions, or give another store.url",
    "permission denied": (
        "check what this user may do there; it creates tables in the schema, then reads and inserts"
    ),
    "unable to open": "it cannot be created or read there: check the folder and permissions",
    "password": "check user and password; special characters in a URL are percent-encoded",
    "refused": "no server is running there, or it is elsewhere: check host and port",
    "resolve": "check the host's name",
    "timeout expired": "the server does not answer: check host, port and firewall",
    "no module named": (
        "install the driver, or leave it out of the URL: postgresql://... takes "
        "the one that is installed"
    ),
    "no such table": (
        "it is not what it was when the search began: restore it, or run the same command again"
    ),
    'relation "': (
        "it is not what it was when the search began: restore it, or run the same command again"
    ),
    "does not exist": "create it first, or give another store.url",
}

_SQLITE_OUTAGES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_POSTGRESQL_OUTAGES = {"53300", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "25P03"}
"""Too many connections; lock or statement timed out; shut down, crashed, starting; session timed
out. With them all of 08 and 40.
"""
_POSTGRESQL_REFUSALS = (
    "authentication failed",
    "no password",
    "does not exist",
    "pg_hba.conf",
    "not permitted to log in",
    "does not support ssl",
    "certificate",
)
"""Failures to connect carry no SQLSTATE; all but these may end by themselves."""

_backoff = wait_exponential(multiplier=0.2, max=MAX_WAIT_S) + wait_random(
    0, 0.2
)  # at random, so that drivers do not come back all at once
_T = TypeVar("_T")


class Database:
    """Connections to one database.

    Args:
        sqlite_timeout_s: how long one attempt waits for another process that writes to the same
            SQLite file.

    Raises:
        InputError: the URL cannot be used. Nothing is opened yet.
    """

    def __init__(self, url: str, *, sqlite_timeout_s: float) -> None:
        self._url, self.name = url, masked_url(url)
        try:
            parsed = make_url(url)
            self._engine = _make_engine(parsed, sqlite_timeout_s)
        except (
            sql.exc.ArgumentError,
            ImportError,
            ValueError,
        ) as error:  # ValueError: a port that is not a number
            raise InputError(f"store.url: {self.explain(error)}") from error
        self.sqlite_file = _sqlite_file(parsed)

    def close(self) -> None:
        self._engine.dispose()

    def sync(self) -> None:
        """Waits until the disk has what was committed. Other databases than SQLite with a WAL have
        it when they confirm a commit.

        Closing the WAL gives up no lock of SQLite: those are on its other files.

        Raises:
            OSError: the disk does not take it.
        """
        wal = self.sqlite_file and Path(f"{self.sqlite_file}-wal")
        if wal and wal.exists():
            disk.sync(wal)

    def run_with_retry(self, work: Callable[[sql.Connection], _T], retry_s: float) -> _T:
        """Does `work` in one transaction, and again while the database is away.

        `work` may run twice: the answer to a commit may get lost.

        Raises:
            sqlalchemy.exc.DBAPIError: at once where another attempt would not help, else after
                `retry_s`.
        """
        started = time.monotonic()

        def attempt() -> _T:
            with self._engine.begin() as connection:
                return work(connection)

        def wait(state: RetryCallState) -> float:
            return min(_backoff(state), max(0.0, retry_s - (time.monotonic() - started)))

        def warn(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                reason = self._reason(state.outcome.exception())
                log.warning(
                    "store %s: %s; trying again for up to %.0f s", self.name, reason, retry_s
                )

        retrying = Retrying(
            retry=retry_if_exception(_is_outage),
            wait=wait,
            stop=stop_after_delay(retry_s),
            before_sleep=warn,
            reraise=True,
        )
        result = retrying(attempt)
        if retrying.statistics["attempt_number"] > 1:
            log.info("store %s: back after %.1f s", self.name, time.monotonic() - started)
        return result

    def _reason(self, error: BaseException | None) -> str:
        """What a driver says, on one line, without secrets."""
        cause = getattr(error, "orig", None) or error
        said = getattr(getattr(cause, "diag", None), "message_primary", None) or str(
            cause
        )  # PostgreSQL quotes the statement after it
        return " ".join(without_secrets(said, self._url).split())[:300] or type(cause).__name__

    def explain(self, error: Exception) -> str:
        """Which database, what happened, and what to do."""
        reason = self._reason(error)
        advice = next(
            (text for key, text in _ADVICE.items() if key in reason.lower()), "check store.url"
        )
        return f"{self.name}: {reason}; {advice}"


def _is_outage(error: BaseException) -> bool:
    """Whether the database may be back by itself.

    A damaged file, a wrong password or a full disk will not.
    """
    if not isinstance(error, sql.exc.DBAPIError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return (
            getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_OUTAGES
        )  # the low byte: extended codes say more
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state is not None:
        return state in _POSTGRESQL_OUTAGES or state[:2] in ("08", "40")
    if error.connection_invalidated:
        return True
    refused = any(words in str(cause).lower() for words in _POSTGRESQL_REFUSALS)
    return (
        isinstance(error, sql.exc.OperationalError)
        and type(cause).__module__.startswith("psycopg")
        and not refused
    )


def _sqlite_file(url: URL) -> Path | None:
    """None for other databases, and for one in memory."""
    name = url.database or ":memory:"
    if name.startswith("file:"):  # SQLite's own kind of URI, with ?uri=true
        name = unquote(urlsplit(name).path)
    return Path(name) if url.get_backend_name() == "sqlite" and ":memory:" not in name else None


def _make_engine(url: URL, sqlite_timeout_s: float) -> sql.Engine:
    # hide_parameters: what SQLAlchemy says of a failed statement would otherwise hold hundreds of
    # scores.
    if url.get_backend_name() == "sqlite":
        engine = sql.create_engine(
            url, connect_args={"timeout": sqlite_timeout_s}, hide_parameters=True
        )
        sql.event.listen(engine, "connect", _set_up_sqlite)
        return engine
    libpq = url.get_backend_name() == "postgresql" and url.get_driver_name() in (
        "psycopg",
        "psycopg2",
    )
    options = (
        {name: value for name, value in _LIBPQ.items() if name not in url.query} if libpq else {}
    )
    engine = sql.create_engine(url, connect_args=options, hide_parameters=True, pool_pre_ping=True)
    if libpq:
        sql.event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """WAL lets others read while one writes.

    With it, synchronous=NORMAL syncs the disk at checkpoints instead of at every commit, which
    takes a hundred times as long (5 ms instead of 0.05 ms on an SSD): after a power cut the last
    transactions may be missing, but the file is never damaged. Those before `Database.sync` are
    there. A process that dies loses nothing. Where there can be no WAL, every commit is synced.
    """
    [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    connection.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")


def _set_up_postgresql(connection: Any, _: object) -> None:
    """A driver that hangs in a transaction must not hang the others that write the same keys."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
        cursor.execute("SET statement_timeout = '30s'")
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()
