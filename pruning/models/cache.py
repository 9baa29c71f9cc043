"""Converted models on disk: made once, whole or not at all, whichever process is first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which `write(scratch)` fills beside its place if it is not there yet."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        write(Path(scratch))
        Path(scratch).chmod(0o755)
        try:
            Path(scratch).rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first: its folder has the same content
                raise
        else:
            Path(scratch).mkdir()  # for the context manager to remove
    return folder
