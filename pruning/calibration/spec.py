"""What decides which calibration text a search sees."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

Source = Literal["pydoc", "text", "alpaca", "wikitext2", "c4", "ptb", "tokens"]


SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """How to make a calibration set.

    For running text (`pydoc`, `wikitext2`, a text file) and `tokens`, a sample is one sequence. For
    rows (`alpaca`, `c4`, `ptb`, JSONL) it is one row: the drawn rows are joined with two newlines,
    tokenized as one text and cut into sequences (docs/concepts/method.md, "Calibration as
    published").

    Args:
        path: the file of `text` and `tokens`; for the named datasets a local copy to use instead of
            the hub.
        column: field of each row that holds the text; None is the dataset's own.
        rows_are_samples: False: a sample of rows is one sequence, as in a mixture.
        num_width_samples: 0 where one set is enough.
        option: what it is given with, for messages.
    """

    source: Source
    num_block_samples: int
    num_width_samples: int
    num_heldout_samples: int
    sequence_length: int
    seed: int
    path: str | None = None
    column: str | None = None
    rows_are_samples: bool = True
    option: str = "calibration"


@dataclass(frozen=True, slots=True)
class MixedSource:
    """One source of a mixture.

    Args:
        share: of the samples, in proportion to the other shares.
        path, column: as of `CalibrationSpec`.
        name: what its results are called: letters, digits, `_`, `-` and `.`; None: the file's name
            without its ending for `text` and `tokens`, else the source.
    """

    source: Source
    share: float = 1.0
    path: str | None = None
    column: str | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """Its name, given or made."""
        if self.name is not None:
            return self.name
        of_file = self.source in ("text", "tokens") and self.path is not None
        return re.sub(r"[^\w.-]+", "-", Path(self.path or "").stem) if of_file else self.source


@dataclass(frozen=True, slots=True)
class MixtureSpec:
    """How to make calibration sets of several sources.

    A sample is one sequence, whatever its source; the numbers are those of all sources together.
    Each source is drawn from with the same seed.
    """

    sources: tuple[MixedSource, ...]
    num_block_samples: int
    num_width_samples: int
    num_heldout_samples: int
    sequence_length: int
    seed: int

    def __str__(self) -> str:
        """The sources with their shares of 1."""
        total = math.fsum(each.share for each in self.sources)
        return ", ".join(f"{each.label} {each.share / total:.4g}" for each in self.sources)

    def problems(self) -> list[str]:
        """What is wrong with the sources together and their shares, before any is read."""
        if not self.sources:
            return [
                "calibration.sources: empty; give a list such as "
                "[{source: pydoc}, {source: text, path: my.txt, share: 2}]"
            ]
        found = [
            f"calibration.sources.{index}.share: {each.share:g}; above 0"
            for index, each in enumerate(self.sources)
            if not 0 < each.share < math.inf
        ]
        return found + self._problems_of_names() + ([] if found else self._problems_of_counts())

    def parts(self) -> dict[str, CalibrationSpec]:
        """Each source with its part of the samples, by name; call `problems` first."""
        shares = [each.share for each in self.sources]
        block, width, heldout = (split_by_shares(getattr(self, name), shares) for name in _COUNTS)
        return {
            each.label: CalibrationSpec(
                each.source,
                num_block_samples=block[index],
                num_width_samples=width[index],
                num_heldout_samples=heldout[index],
                sequence_length=self.sequence_length,
                seed=self.seed,
                path=each.path,
                column=each.column,
                rows_are_samples=False,
                option=f"calibration.sources.{index}",
            )
            for index, each in enumerate(self.sources)
        }

    def _problems_of_names(self) -> list[str]:
        names = [each.label for each in self.sources]
        found = [
            f"calibration.sources.{index}.name: {name!r}; letters, digits, _, - and . only"
            for index, name in enumerate(names)
            if not re.fullmatch(r"[\w.-]+", name)
        ]
        return found + [
            f"calibration.sources.{index}.name: {name}, as that of calibration.sources."
            f"{names.index(name)}; give each a name of its own"
            for index, name in enumerate(names)
            if names.index(name) < index
        ]

    def _problems_of_counts(self) -> list[str]:
        """A source without a sample is no part of the mixture."""
        shares = [Fraction(str(each.share)) for each in self.sources]
        enough, found = math.ceil(sum(shares) / min(shares)), []
        for name in _COUNTS:
            total = getattr(self, name)
            counts = split_by_shares(total, [each.share for each in self.sources])
            left_out = [
                f"calibration.sources.{index} ({each.label}, share {each.share:g})"
                for index, each in enumerate(self.sources)
                if counts[index] == 0
            ]
            if total > 0 and left_out:
                found.append(
                    f"calibration.{name}: {total}, of which {' and '.join(left_out)} would get "
                    f"none; give {enough} or more, or other shares"
                )
        return found


_COUNTS = ("num_block_samples", "num_width_samples", "num_heldout_samples")


def split_by_shares(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """A number in whole parts, by the largest remainder; of equal remainders the first is larger.

    Args:
        shares: above 0, in proportion to one another.
    """
    exact = [Fraction(str(share)) for share in shares]
    quotas = [total * share / sum(exact) for share in exact]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - quotas[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return tuple(counts)
