"""What a model is called in titles, tables and records."""

from __future__ import annotations


def display_name(path: str) -> str:
    """The last part of a path or hub id, without `.gguf`."""
    return path.rstrip("/").rsplit("/", maxsplit=1)[-1].removesuffix(".gguf")
