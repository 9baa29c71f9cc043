"""What scoring comes to: sums over the tokens of each sequence, and the figures made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class BatchScore:
    """NLL of each sequence of one batch, in nats summed over `num_tokens` predicted tokens."""

    nll: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ShapeScore:
    """NLL of one shape on one set: `nll_per_sequence` in nats summed over `num_tokens` predicted
    tokens of each sequence.
    """

    nll_per_sequence: tuple[float, ...]
    num_tokens: int

    @classmethod
    def of(cls, batches: Iterable[BatchScore]) -> Self:
        """All batches of the set, in their order."""
        first, *rest = batches
        return cls(sum((batch.nll for batch in rest), first.nll), first.num_tokens)

    @property
    def nll(self) -> float:
        """Mean NLL in nats per token.

        The sum is rounded once, so the result has the same bits wherever it was computed.
        """
        return exact_sum(self.nll_per_sequence) / (len(self.nll_per_sequence) * self.num_tokens)

    def of_sequences(self, sequences: Iterable[int]) -> ShapeScore:
        """On some sequences of the set alone."""
        return replace(
            self, nll_per_sequence=tuple(self.nll_per_sequence[each] for each in sequences)
        )

    def towards(self, other: ShapeScore, share: float) -> ShapeScore:
        """So far from this score to another one: 0 is this one, 1 the other."""
        pairs = zip(self.nll_per_sequence, other.nll_per_sequence, strict=True)
        return replace(
            self, nll_per_sequence=tuple(mine + share * (theirs - mine) for mine, theirs in pairs)
        )

    def stderr_of_difference(self, other: ShapeScore) -> float | None:
        """Standard error of `self.nll - other.nll` over the sequences, paired: both shapes saw the
        same text, so what its difficulty adds cancels.

        None where there is one sequence only, or a score is not finite. `fsum` rounds once, so the
        bits depend on neither order nor Python.
        """
        pairs = zip(self.nll_per_sequence, other.nll_per_sequence, strict=True)
        differences = [(mine - theirs) / self.num_tokens for mine, theirs in pairs]
        count = len(differences)
        if count < 2 or not all(map(math.isfinite, differences)):
            return None
        mean = math.fsum(differences) / count
        return math.sqrt(
            math.fsum((difference - mean) ** 2 for difference in differences) / (count - 1) / count
        )


def exact_sum(values: Sequence[float]) -> float:
    """The sum, rounded once: `sum` of floats adds otherwise from Python 3.12 on.

    NaN or infinite where a value is.
    """
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def perplexity(nll: float) -> float | None:
    """exp(nll); None where that is not a finite number."""
    return math.exp(nll) if math.isfinite(nll) and nll < 700 else None
