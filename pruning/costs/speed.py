"""How speed is measured: what is run, and a figure over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from pruning.errors import InputError


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What is run: random tokens, the same for every model and round.

    Args:
        batch_size: sequences that run together.
        prompt_tokens: tokens of each sequence that the prefill reads in one forward.
        new_tokens: tokens of each sequence that are decoded after it, one forward each.
        rounds: timed repetitions of each model, after one that is not timed. An even number lets
            each model go first equally often.
        seed: draws the tokens.

    Raises:
        InputError: a count is below 1.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; expected at least 1")

    @property
    def context_tokens(self) -> int:
        """Tokens of each sequence at the end."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured once a round."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])
