"""Memory that scoring by KL keeps between the candidates of a batch."""

from __future__ import annotations

KEPT_BYTES = 1_000_000_000
"""Of the dense model's distributions on a batch, at most. Larger ones are computed again for each
candidate, a chunk of tokens at a time, to the same bits.
"""


def kept_bytes(num_tokens: int, vocab_size: int) -> int:
    """What the distributions of a batch take: float32, or nothing where that is too much."""
    whole = num_tokens * vocab_size * 4
    return whole if whole <= KEPT_BYTES else 0
