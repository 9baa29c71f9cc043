"""Several sources in one calibration set, so that any beginning of it has their shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pruning.calibration.token_sets import Calibration, TokenSet


def mixed(parts: Mapping[str, Calibration]) -> Calibration:
    """The sets of each source, by name, as one; its held-out text is that of the sources that have
    some.
    """
    heldout = {name: part.heldout for name, part in parts.items() if part.heldout is not None}
    return Calibration(
        _interleaved({name: part.block for name, part in parts.items()}),
        _interleaved({name: part.width for name, part in parts.items()}),
        _interleaved(heldout) if heldout else None,
    )


def _interleaved(parts: Mapping[str, TokenSet]) -> TokenSet:
    """The sequences of each source stay in their order."""
    names = list(parts)
    if not any(tokens.num_sequences for tokens in parts.values()):
        return parts[names[0]]
    order = interleaving([parts[name].num_sequences for name in names])
    left = {name: iter(tokens.input_ids) for name, tokens in parts.items()}
    origins = tuple(names[index] for index in order)
    return TokenSet(np.stack([next(left[name]) for name in origins]), origins)


def interleaving(counts: Sequence[int]) -> tuple[int, ...]:
    """Which source comes at each place: of any beginning, each has its share to within less than
    one.

    Item k of a source with n of N samples may come when the source's share of what has come
    exceeds k, and is due after (k + 1)N / n places. What is due first comes first, as in fair
    scheduling; of equals, what is furthest behind its share.
    """
    total, placed, order = sum(counts), [0] * len(counts), list[int]()
    for place in range(1, total + 1):
        behind = [count * place - total * done for count, done in zip(counts, placed, strict=True)]
        due = [-(-total * (done + 1) // count) for count, done in zip(counts, placed, strict=True)]
        ready = [index for index in range(len(counts)) if behind[index] > 0]
        order.append(min(ready, key=lambda index: (due[index], -behind[index], index)))
        placed[order[-1]] += 1
    return tuple(order)
