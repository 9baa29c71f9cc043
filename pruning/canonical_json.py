"""JSON with one form for one content."""

from __future__ import annotations

import json
from typing import Any


def dump_json(data: Any) -> str:
    """JSON text with the same bytes for the same data. Numbers must be finite."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
