"""What an exported folder is and how it was made, with the SHA-256 of every file, so that one that
is not whole is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.canonical_json import dump_json
from pruning.errors import InputError

FILE = "multipruner.json"
VERSION = 1
VERIFIED, BAD, UNVERIFIED = "verified", "bad", "unverified"


def write_manifest(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder that is complete but for it."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in _names(folder)
    }
    (folder / FILE).write_text(
        dump_json({"manifest_version": VERSION, **description, "files": files}), encoding="utf-8"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, without looking at the other files.

    Raises:
        InputError: there is none, or it is not one of this version.
    """
    path = folder / FILE
    if not folder.is_dir():
        raise InputError(f"checkpoint: no folder {folder}")
    if not path.is_file():
        raise InputError(
            f"checkpoint: {folder} has no {FILE}, so it was not written by multipruner export; "
            f"open other models with model.path={folder}"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        version, _ = manifest["manifest_version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"checkpoint: {path} is damaged: {type(error).__name__}: {error}. Export the model "
            "again"
        ) from error
    if version != VERSION:
        raise InputError(
            f"checkpoint: {path} has version {version}, this program reads {VERSION}; export the "
            "model again"
        )
    return manifest


def check_folder(folder: Path) -> dict[str, Any]:
    """Reads every byte of an exported folder and compares with its manifest, which it returns.

    Raises:
        InputError: naming the file and what is wrong with it: missing, cut short, changed, not of
            this export; or the export itself was bad.
    """
    manifest = read_manifest(folder)
    if manifest.get("status") == BAD:
        raise InputError(
            f"checkpoint: {folder} is marked as bad: its logits were not those of the masked "
            f"model ({manifest.get('verification')})"
        )
    listed = manifest["files"]
    missing = sorted(name for name in listed if not (folder / name).is_file())
    if missing:
        raise InputError(
            f"checkpoint: {folder} is incomplete: {', '.join(missing[:4])} of its {len(listed)} "
            "files missing. Copy or export it again"
        )
    foreign = sorted(set(_names(folder)) - set(listed))
    if foreign:
        raise InputError(
            f"checkpoint: {folder} has {', '.join(foreign[:4])}, which its {FILE} does not list: "
            "it is mixed with another model or was edited"
        )
    for name, wanted in listed.items():
        path = folder / name
        size = path.stat().st_size
        if size < wanted["bytes"]:
            raise InputError(
                f"checkpoint: {path} is cut short: {size:,} of {wanted['bytes']:,} bytes. Copy "
                "or export it again"
            )
        if size != wanted["bytes"] or _sha256(path) != wanted["sha256"]:
            raise InputError(
                f"checkpoint: {path} is not the file that {FILE} describes (SHA-256 differs): it "
                "was changed, or belongs to another model"
            )
    return manifest


def _names(folder: Path) -> list[str]:
    """Files of the export: caches of other programs that use the folder do not count."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != FILE
        and not any(
            part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts
        )
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
