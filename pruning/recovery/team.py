"""The processes that train one model together. Each has all of the model and takes some parts of
every update.

What they find is added up in the order of the parts and not in that in which it arrives, so that
their number changes no bit of what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from pruning.errors import InputError

T = TypeVar("T")


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

    def told_by_first(self, value: T | None) -> T:
        """What the first process gives, to all of them; what others give does not count."""
        if self.size == 1:
            assert value is not None
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def check_same(self, weights: Sequence[nn.Parameter]) -> None:
        """All processes must have the same weights, or what one of them saves is not what all of
        them train.

        Raises:
            InputError: they round differently.
        """
        if self.size == 1:
            return
        own = [float(weight.detach().double().sum()) for weight in weights]
        found: list[list[float]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(found, own)
        if any(each != found[0] for each in found):
            raise InputError(
                "cluster: the processes that train together no longer have the same weights, as "
                "devices or libraries of theirs round differently; keep them on nodes of one kind "
                "(cluster.label_selector), or let one train (cluster.num_evaluators=1). What the "
                "last checkpoint has is kept"
            )


def _share(rank: int, size: int, num_parts: int) -> range:
    return range(rank * num_parts // size, (rank + 1) * num_parts // size)
