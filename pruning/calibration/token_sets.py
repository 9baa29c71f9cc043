"""Fixed token sequences with a fingerprint, and the sets of one search."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

SetName = Literal["block", "width", "heldout"]


SET_NAMES: tuple[SetName, ...] = get_args(SetName)


Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenSet:
    """Equally long token sequences without padding: `input_ids` is int64 [sequences, length]."""

    input_ids: Tokens

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

    def save(self, path: Path) -> None:
        save_file({name: tokens.input_ids for name, tokens in self.sets().items()}, path)
