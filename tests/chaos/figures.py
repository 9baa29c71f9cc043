"""What a whole run of chaos came to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from tests.chaos.leaks import Holdings


@dataclass(slots=True)
class Effect:
    """Of all faults of one kind."""

    injected: int = 0
    retried: int = 0
    replaced: int = 0
    drivers: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Figures:
    """What a whole run came to."""

    effects: defaultdict[str, Effect] = field(default_factory=lambda: defaultdict(Effect))
    searches: int = 0
    steps: int = 0
    evaluations: int = 0
    lost_evaluations: int = 0
    speculative_tasks: int = 0
    evaluators: int = 0
    seconds: float = 0.0
    holdings: list[tuple[str, Holdings]] = field(default_factory=list)
