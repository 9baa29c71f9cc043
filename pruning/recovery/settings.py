"""What decides a recovery, besides the model and the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

LossName = Literal["kl", "nll"]
"""The divergence from the dense model's distributions, or the NLL of the next tokens."""

LOSSES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """One training of low-rank adapters (LoRA, arXiv 2106.09685), or of whole matrices, with AdamW.

    Args:
        steps: updates at most.
        batch_size: sequences of one update.
        micro_batch_size: sequences of one part of an update, which are in memory together. The
            gradients of its parts are added up, and several processes can share them.
        rank, alpha, dropout: an adapted matrix W computes W x + alpha / rank B A dropout(x), with A
            of `rank` rows. `rank` None: W itself is trained, and neither alpha nor dropout count.
        learning_rate: its highest value.
        warmup_steps: updates until it is reached, linearly; from there it falls linearly to 0.
        max_grad_norm: gradients with a larger norm are scaled down to it.
        checkpoint_every: updates between two checkpoints; each measures held-out text.
        patience: checkpoints in a row without a lower held-out NLL after which it ends; None: no
            number of them.
        seed: of the adapters' first values, of the order of the text and of dropout.
    """

    loss: LossName
    steps: int
    batch_size: int
    micro_batch_size: int
    rank: int | None
    alpha: float | None
    dropout: float
    learning_rate: float
    warmup_steps: int
    max_grad_norm: float
    checkpoint_every: int
    patience: int | None
    seed: int

    @property
    def num_parts(self) -> int:
        """Of an update."""
        return -(-self.batch_size // self.micro_batch_size)

    @property
    def scale(self) -> float:
        """What B A is multiplied by; 1 of whole matrices."""
        if self.rank is None:
            return 1.0
        assert self.alpha is not None
        return self.alpha / self.rank

    @property
    def trained(self) -> str:
        """What is trained, for people."""
        return "whole matrices" if self.rank is None else f"adapters of rank {self.rank}"

    def rate_at(self, step: int) -> float:
        """Learning rate of update `step`, the first being 1. The last is above 0."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        left = (self.steps + 1 - step) / (self.steps + 1 - self.warmup_steps)
        return self.learning_rate * left
