"""Converted models on disk: built once, whole or not at all, whichever process is first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pruning import disk


def build_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` if it is not there yet.

    `write` gets a temporary folder beside it, which is then renamed atomically.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        write(Path(scratch))
        Path(scratch).chmod(0o755)
        try:
            disk.rename(Path(scratch), folder)
        except OSError:
            if not folder.is_dir():  # another process was first: its folder has the same content
                raise
        else:
            Path(scratch).mkdir()  # for the context manager to remove
    return folder


def cache_folder() -> Path:
    """Where converted models are kept: `MULTIPRUNER_CACHE`, or `multipruner` in the user's cache
    folder.
    """
    given = os.environ.get("MULTIPRUNER_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multipruner"
