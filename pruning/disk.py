"""Files and folders that outlive a power cut: contents are on the disk before the name that says
so, and the name before anything relies on it.
"""

from __future__ import annotations

import os
from pathlib import Path


def rename(source: Path, target: Path) -> None:
    """Gives a file, or a folder with all that is in it, its name; what had the name is replaced.

    Without `sync` before it, a power cut may leave the new name with an empty file.

    Raises:
        OSError: it cannot be written, or a folder that is not empty has the name.
    """
    inside = sorted(source.rglob("*")) if source.is_dir() else []
    for path in (*inside, source):
        if path.exists():  # a link may lead nowhere
            sync(path)
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Waits until the disk has a file's contents, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
