"""The processes that train one model together. Each has all of the model and takes some parts of
every update.

What they find is added up in the order of the parts and not in that in which it arrives, so that
their number changes no bit of what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import distributed, nn


@dataclass(frozen=True, slots=True)
class Team:
    """As one of its processes sees it. Of more than one, each has called
    `torch.distributed.init_process_group` before, and all take the same calls in the same order.

    Args:
        rank: of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, num_parts: int) -> range:
        """Which of the parts are this process's, consecutive ones."""
        return _share(self.rank, self.size, num_parts)

    def gathered(self, values: Sequence[float]) -> list[float]:
        """The values of all parts in their order, from those of each process's own."""
        if self.size == 1:
            return list(values)
        found: list[list[float]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(found, list(values))
        return list(chain.from_iterable(found))

    def add_up(
        self,
        weights: Sequence[nn.Parameter],
        gradients: Sequence[Sequence[torch.Tensor]],
        num_parts: int,
    ) -> None:
        """Sets the gradient of each weight to the sum over all parts.

        One weight after the other, so that no process has all gradients of all parts.

        Args:
            gradients: of this process's parts, for each of them those of the weights.
        """
        shares = [_share(rank, self.size, num_parts) for rank in range(self.size)]
        longest = max(map(len, shares))
        for number, weight in enumerate(weights):
            own = weight.new_zeros((longest, *weight.shape))
            for place, part in enumerate(gradients):
                own[place] = part[number]
            everyone = [torch.empty_like(own) for _ in shares]
            distributed.all_gather(everyone, own)
            parts = [
                part
                for found, share in zip(everyone, shares, strict=True)
                for part in found[: len(share)]
            ]
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            weight.grad = total

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


def _share(rank: int, size: int, num_parts: int) -> range:
    return range(rank * num_parts // size, (rank + 1) * num_parts // size)
