"""Fixed token sequences with a fingerprint, and the sets of one search."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

SetName = Literal["block", "width", "heldout"]


SET_NAMES: tuple[SetName, ...] = get_args(SetName)


Tokens = npt.NDArray[np.int64]


def part_name(set_name: SetName, source: str) -> str:
    """What one source of a mixture gave to a set."""
    return f"{set_name}_{source}"


def heldout_sources(names: Iterable[str]) -> dict[str, str]:
    """The source of each name that is `part_name` of held-out text."""
    prefix = part_name("heldout", "")
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


@dataclass(frozen=True, slots=True, eq=False)
class TokenSet:
    """Equally long token sequences without padding: `input_ids` is int64 [sequences, length].

    Args:
        origins: of a mixture, the name of the source of each sequence.
    """

    input_ids: Tokens
    origins: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape and tokens, 32 hexadecimal digits."""
        data = np.ascontiguousarray(self.input_ids, dtype="<i8")
        return hashlib.sha256(str(data.shape).encode() + data.tobytes()).hexdigest()[:32]

    @property
    def num_sequences(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def sequence_length(self) -> int:
        return int(self.input_ids.shape[1])

    def positions(self) -> dict[str, tuple[int, ...]]:
        """Of a mixture, which sequences each source gave; else nothing."""
        return {
            name: tuple(index for index, origin in enumerate(self.origins) if origin == name)
            for name in sorted(set(self.origins))
        }

    def batches(self, batch_size: int) -> list[Tokens]:
        """Consecutive batches; the last one may be smaller."""
        return [
            self.input_ids[start : start + batch_size]
            for start in range(0, self.num_sequences, batch_size)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The three sets of a search.

    `heldout` shares no text with the other two and is None when the source has none to spare.
    """

    block: TokenSet
    width: TokenSet
    heldout: TokenSet | None

    def sets(self) -> dict[SetName, TokenSet]:
        found: dict[SetName, TokenSet] = {"block": self.block, "width": self.width}
        return found if self.heldout is None else found | {"heldout": self.heldout}

    def parts(self) -> dict[str, TokenSet]:
        """Of a mixture, what each source gave to each set, by names such as `heldout_pydoc`; else
        nothing.
        """
        return {
            part_name(name, source): TokenSet(tokens.input_ids[list(positions)])
            for name, tokens in self.sets().items()
            for source, positions in tokens.positions().items()
        }

    def sets_and_parts(self) -> dict[str, TokenSet]:
        """All of both."""
        sets: dict[str, TokenSet] = dict(self.sets().items())
        return sets | self.parts()

    def save(self, path: Path) -> None:
        save_file({name: tokens.input_ids for name, tokens in self.sets().items()}, path)
