"""The JSON files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pruning.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}, and should hold an object")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"model.path: cannot read {path}: {error}; give the folder of a whole model"
        ) from error
    return data
