"""How many candidates were scored, of how many there were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scored_in_words(scored: int, unscored: int | None) -> str:
    """Such as `312 of 1,489`.

    Args:
        unscored: that the selection left out; None: it leaves none out, which needs no words.
    """
    return f"{scored:,}" if unscored is None else f"{scored:,} of {scored + unscored:,}"


def search_in_words(evaluations: Mapping[str, Any]) -> str:
    """The same of a whole search.

    Args:
        evaluations: as in summary.json.
    """
    return scored_in_words(evaluations["candidates"], evaluations.get("unscored"))
