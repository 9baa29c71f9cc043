"""The output folder of a run: who owns it, what it is called, and files that are either whole or
not there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from pipelines.runs.files import DENSE, LOCK, PRUNE_LOG, RUN, damaged, read_json_if_there
from pruning import disk
from pruning.canonical_json import dump_json
from pruning.errors import InputError

ROOT = Path("outputs")

_LOCKS = Path("/proc/locks")
_NAMESPACE = Path("/proc/self/ns/pid")


class RunFolder:
    """One folder, held by one process at a time.

    Args:
        path: the folder; None makes a dated one under `outputs/`.

    Raises:
        InputError: it cannot be written, or another process is at work in it.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path).expanduser().absolute() if path else dated_folder()
        self._remembering = threading.Lock()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"output_dir: another process is at work in {self.path}; wait for it, or give "
                "another folder"
            ) from error
        except OSError as error:
            raise InputError(
                f"output_dir: cannot write to {self.path}: {error.strerror or error}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """What ends a job early says where the folder is, since a dated one is in no command, and
        whether there is a run in it to resume.
        """
        self.release()
        if error is not None:
            found = "" if (self.path / RUN).exists() else "no run in "
            error.add_note(f"{found}output_dir={self.path}")

    def release(self) -> None:
        self._lock.release()

    def claim(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the folder belong to the run with this identity, or goes on with it.

        Returns:
            The record of `run.json`: `identity`, `started` (seconds since 1970), and what earlier
            processes of the run added.

        Raises:
            InputError: see `check`.
        """
        record = self.check(identity)
        if record is None:
            record = {"identity": dict(identity), "started": round(time.time(), 3)}
            self.write(RUN, dump_json(record))
        return record

    def check(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Whether the run with this identity may have the folder; writes nothing.

        Returns:
            The record of `run.json`; None if the folder belongs to nobody.

        Raises:
            InputError: the folder belongs to another run, or holds something else.
        """
        record = self.read(RUN)
        if record is None:
            self.require_own()
            return None
        if not isinstance(record.get("identity"), dict):
            raise damaged(self.path / RUN, KeyError("identity"), option="output_dir")
        theirs = record["identity"]
        names = dict.fromkeys([*identity, *theirs])
        differing = [
            f"{name}: {theirs.get(name)} there, {identity.get(name)} here"
            for name in names
            if theirs.get(name) != identity.get(name)
        ]
        if differing:
            raise InputError(
                f"output_dir: {self.path} belongs to another run:\n  "
                + "\n  ".join(differing)
                + "\nGive another output_dir; scores that both need are shared"
            )
        return record

    def require_own(self) -> None:
        """Whether nothing is in the folder that no run has put there.

        Raises:
            InputError: it holds something else.
        """
        before_the_record = {PRUNE_LOG, DENSE}
        foreign = sorted(
            entry.name
            for entry in self.path.iterdir()
            if not entry.name.startswith(".") and entry.name not in before_the_record
        )
        if foreign and not (self.path / RUN).exists():
            raise InputError(
                f"output_dir: {self.path} is not empty and not a run's folder (it has "
                f"{', '.join(foreign[:4])}); give another folder"
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; None if it is not there.

        Raises:
            InputError: it is damaged.
        """
        return read_json_if_there(self.path / name, option="output_dir")

    def remember(self, **fields: Any) -> None:
        """Adds to the record of `run.json`, from any thread."""
        with self._remembering:
            self.write(RUN, dump_json((self.read(RUN) or {}) | fields))

    def write(self, name: str, text: str, *, durable: bool = True) -> Path:
        """Writes a file so that it is there whole or not at all.

        Args:
            durable: after a power cut too, for which the disk is waited for.
        """
        return self.write_with(
            name, lambda scratch: scratch.write_text(text, encoding="utf-8"), durable=durable
        )

    def write_with(self, name: str, writer: Any, *, durable: bool = True) -> Path:
        """Lets `writer(path)` write a temporary file, then renames it atomically.

        Raises:
            OSError: it cannot; the error names the file, which one of a full disk does not.
        """
        path = self.path / name
        try:
            with tempfile.TemporaryDirectory(dir=self.path, prefix=".") as scratch:
                temporary = Path(scratch) / name
                writer(temporary)
                if durable:
                    disk.rename(temporary, path)
                else:
                    temporary.replace(path)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        return path

    def link(self, name: str, source: Path) -> Path:
        """The same file under a name of this folder, since statistics are large; a copy on another
        disk. Files of a run are replaced and never rewritten, so that a link keeps what it was.
        """

        def linked(path: Path) -> None:
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)

        return self.write_with(name, linked)


def pid_namespace() -> str | None:
    """That of this process: the system's list of locks has only those of processes in it, or in one
    below. None where there is none.
    """
    try:
        return str(_NAMESPACE.readlink())
    except OSError:
        return None


def is_held(folder: Path) -> bool | None:
    """Whether a process that this one can see is at work in the folder; None where the system has
    no list of locks that can be read.

    It is read from the list: who tried the lock would hold it for a moment, and a driver that
    starts in that moment would be refused.
    """
    try:
        number = (folder / LOCK).stat().st_ino
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return None
    # By inode alone: on overlayfs and btrfs the kernel lists another device than a file's own.
    return any(
        "->" not in line and place.rpartition(":")[2] == str(number)
        for line in lines
        for place in line
        if place.count(":") == 2
    )


def dated_folder() -> Path:
    """A new one under `outputs/`, which is not made yet."""
    stem = (
        ROOT / datetime.now().strftime("%Y-%m-%d") / datetime.now().strftime("%H-%M-%S")
    ).absolute()
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}_{number}")
    return path
