"""A real PostgreSQL server in a folder, for tests and scripts: TCP on 127.0.0.1 with a password,
nothing synced to disk.

with PostgresServer(Path("/tmp/somewhere")) as server:
    ScoreStore(server.url)
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

USER = "pruner"
PASSWORD = "s3cr3t/W0rd @%d'x"
"""With characters that a URL, a driver or a shell might trip over."""
START_TIMEOUT_S = 60


class PostgresServer:
    """Makes a database cluster in `folder` and runs its server for the time of the context.

    It keeps its port when it is started again.

    Args:
        folder: where data, log and socket go. If this process is root, its owner and those above it
            must let `postgres` in: PostgreSQL refuses to run as root.
    """

    def __init__(self, folder: Path) -> None:
        reason = self.missing()
        if reason is not None:
            raise RuntimeError(reason)
        self.folder, self.port = folder, _free_port()
        self._binaries = _binaries()
        self._num_databases = 0

    @staticmethod
    def missing() -> str | None:
        """Why there can be no server on this machine; None if there can."""
        if _binaries() is None:
            return (
                "PostgreSQL is not installed: no initdb in PATH or /usr/lib/postgresql "
                "(Debian: apt-get install postgresql)"
            )
        if os.geteuid() == 0 and _account() is None:
            return (
                "PostgreSQL does not run as root, and there is neither a user postgres nor nobody"
            )
        return None

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database with nothing in it."""
        self._num_databases += 1
        name = f"test_{self._num_databases}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def execute(self, statement: Any, database: str = "postgres") -> list[Any]:
        """Runs one statement past the store, and returns its rows."""
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        account = _account()
        if account is not None:
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            os.chown(password_file, account.pw_uid, account.pw_gid)
        options = [
            "--encoding=UTF8",
            "--locale=C",
            "--auth=scram-sha-256",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--no-sync",
        ]
        self._run("initdb", "-D", self._data, *options)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 30,
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run(
            "pg_ctl",
            "start",
            "-D",
            self._data,
            "-w",
            "-t",
            str(START_TIMEOUT_S),
            "-l",
            str(self.folder / "server.log"),
            "-o",
            options,
        )

    def stop(self, immediate: bool = True) -> None:
        """Immediate: as a crash, without telling its clients.

        Nothing happens if it does not run.
        """
        if (self.folder / "data/postmaster.pid").exists():
            self._run(
                "pg_ctl", "stop", "-D", self._data, "-w", "-m", "immediate" if immediate else "fast"
            )

    def _run(self, program: str, *arguments: str) -> None:
        assert self._binaries is not None
        account = _account()
        identity: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        with (self.folder / "commands.log").open(
            "a"
        ) as log:  # not a pipe: the server would keep it open
            done = subprocess.run(
                [self._binaries / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=2 * START_TIMEOUT_S,
                **identity,
            )
        if done.returncode != 0:
            raise RuntimeError(
                f"{program}: exit status "
                f"{done.returncode}\n{(self.folder / 'commands.log').read_text()[-2000:]}"
            )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests that need it; a test that stops it starts it again.

    Not in pytest's folder, which only its owner may enter.
    """
    reason = PostgresServer.missing()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="multipruner-postgres-"))
    try:
        with PostgresServer(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    """The folder of initdb and pg_ctl; the newest version if there are several."""
    found = [Path(path).resolve() for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    newest = sorted(found, key=lambda path: float(path.parent.parent.name))[-1:]
    path = shutil.which("initdb") or (newest[0] if newest else None)
    return Path(path).resolve().parent if path else None


def _account() -> pwd.struct_passwd | None:
    """Who runs the server if this process is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
