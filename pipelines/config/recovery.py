"""Group `recovery`: its options, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from pipelines.config.groups import at_least, chosen, not_allowed, one_of
from pruning.recovery.settings import LOSSES, RecoverySettings

IN_SWEEPS = "a sweep trains nothing; recover a point, with multipruner recover run=DIR/POINT"


@dataclass
class RecoveryConfig:
    """Group `recovery`."""

    loss: str = one_of(LOSSES)
    steps: int = MISSING
    batch_size: int = MISSING
    micro_batch_size: int | None = MISSING
    sequence_length: int = MISSING
    num_sequences: int | None = MISSING
    num_heldout_sequences: int = MISSING
    rank: int | None = MISSING
    alpha: float | None = MISSING
    dropout: float = MISSING
    learning_rate: float = MISSING
    warmup_steps: int = MISSING
    max_grad_norm: float = MISSING
    checkpoint_every: int = MISSING
    patience: int | None = MISSING
    seed: int = MISSING

    @property
    def wanted(self) -> bool:
        """After a search: whether anything is trained."""
        return self.steps != 0

    def refused(self, given: Sequence[str], why: str) -> list[str]:
        """Its options, where nothing is trained that is asked for, or nothing that they are of.

        Args:
            given: names of the options that the command gives.
        """
        names = [name for name in given if name.startswith("recovery.")]
        if not names and not self.wanted:
            return []
        return [f"{', '.join(names) or 'recovery'}: {why}"]

    def problems(self) -> list[str]:
        found = not_allowed(self, "recovery.")
        found += at_least(
            self,
            "recovery.",
            steps=0,
            batch_size=1,
            micro_batch_size=1,
            sequence_length=2,
            num_sequences=1,
            num_heldout_sequences=1,
            rank=1,
            warmup_steps=0,
            checkpoint_every=1,
            patience=1,
            seed=0,
        )
        for name in ("alpha", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                found.append(f"recovery.{name}: {value:g}; above 0")
        if not 0 <= self.dropout < 1:
            found.append(f"recovery.dropout: {self.dropout:g}; at least 0 and below 1")
        found += self._problems_of_adapters()
        if self.warmup_steps >= self.steps >= 1:
            found.append(
                f"recovery.warmup_steps: {self.warmup_steps}, of {self.steps} recovery.steps; "
                "give fewer"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size >= 1:
            found.append(
                f"recovery.micro_batch_size: {self.micro_batch_size}, above the "
                f"{self.batch_size} of recovery.batch_size"
            )
        return found

    def _problems_of_adapters(self) -> list[str]:
        """Options of adapters where there are none, and the other way round."""
        if self.rank is not None:
            missing = "recovery.alpha: missing; with a recovery.rank give a number, such as 32"
            return [missing] if self.alpha is None else []
        return [
            f"recovery.{name}: {value:g}, of adapters, and recovery.rank=null trains whole "
            "matrices; give recovery=full, which has none of it, or a recovery.rank"
            for name, value in (("alpha", self.alpha), ("dropout", self.dropout or None))
            if value is not None
        ]

    @property
    def sequences(self) -> int:
        """Of the training text."""
        return self.num_sequences or self.steps * self.batch_size

    def settings(self) -> RecoverySettings:
        """What decides the training; call `problems` first."""
        return RecoverySettings(
            chosen(self.loss, LOSSES),
            self.steps,
            self.batch_size,
            self.micro_batch_size or self.batch_size,
            self.rank,
            self.alpha,
            self.dropout,
            self.learning_rate,
            self.warmup_steps,
            self.max_grad_norm,
            self.checkpoint_every,
            self.patience,
            self.seed,
        )
