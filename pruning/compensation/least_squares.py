"""Closed-form compensation: the columns that stay of `o_proj` and `down_proj` are refitted so that
the block returns what it returned whole, in the least-squares sense over the statistics' text.

With W = [W_S W_R] (kept and removed columns), C the Gram matrix of the inputs in the same order and
A = C + ridge mean(diag C) I = L L^T, the minimiser of E |W a - W' a_S|^2 + ridge |W' - W_S|^2 terms
is W' = W_S + W_R L_RS L_SS^-1. The leading block of a Cholesky factor is the factor of the leading
block, so one factor serves every width of a block.

Shape letters: D hidden size, C input channels of a projection, S channels that stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from cachetools import LRUCache

from pruning.compensation.statistics import check_statistics, read_gram
from pruning.importance.channel_order import ChannelOrder, part_order
from pruning.models.geometry import NUM_FACTORS, NUM_SIZES, Geometry, Part
from pruning.models.loaded_model import BlockName

RIDGE = 0.01
"""Share of the mean of the diagonal that is added to it. On SmolLM2-135M with 256k tokens, 0.001 to
0.1 gave the same perplexity to 0.5 %.
"""


class Compensation:
    """Refitted projections of a dense model whose weights are sorted by `order`.

    Statistics are read from their file, factors and weights made, when they are first asked for,
    and what was asked for last is kept.
    On a CPU they are computed by one thread, so that every process makes the same bits.

    Args:
        order: with `compensation`.

    Raises:
        InputError: the statistics are not there, or not those that the order was made with.
    """

    def __init__(self, order: ChannelOrder, geometry: Geometry) -> None:
        assert order.compensation is not None
        self.order, self.source, self.geometry = order, order.compensation, geometry
        check_statistics(Path(self.source.path), self.source.statistics)
        self._factors = LRUCache[tuple[int, BlockName], torch.Tensor](NUM_FACTORS)
        self._weights: dict[tuple[int, BlockName], LRUCache[int, torch.Tensor]] = {}

    def weight(
        self, weight_DC: torch.Tensor, layer: int, block: BlockName, kept: int
    ) -> torch.Tensor:
        """The first `kept` columns of a sorted projection, refitted: [D, S] in its dtype.

        Args:
            weight_DC: the whole projection of that layer, sorted by `order`.
            kept: input channels that stay.
        """
        sizes = self._weights.setdefault((layer, block), LRUCache(NUM_SIZES))
        if kept not in sizes:
            with one_thread():
                factor = self._factor(layer, block, weight_DC.device)
                sizes[kept] = compensated(weight_DC, factor, kept)
        return sizes[kept]

    def _factor(self, layer: int, block: BlockName, device: torch.device) -> torch.Tensor:
        key = (layer, block)
        if key not in self._factors:
            part: Part = "q" if block == "attention" else "down"
            indices = part_order(part, self.geometry, self.order, layer)
            gram = read_gram(Path(self.source.path), layer, block)[indices][:, indices]
            self._factors[key] = cholesky_factor(gram.to(device), self.source.ridge)
        return self._factors[key]


def compensation_of(order: ChannelOrder, geometry: Geometry) -> Compensation | None:
    """What an order says about compensation, ready to be used."""
    return None if order.compensation is None else Compensation(order, geometry)


@contextmanager
def one_thread() -> Iterator[None]:
    """On CPUs, so that every process makes the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cholesky_factor(gram_CC: torch.Tensor, ridge: float) -> torch.Tensor:
    """L of C + ridge mean(diag C) I, float64 [C, C].

    The ridge makes it positive definite with dead channels and with fewer tokens than channels,
    too. Inputs that are all zero have the identity: nothing is refitted then.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    gram = gram_CC.to(torch.float64, copy=True)
    if not torch.isfinite(gram).all():
        raise ValueError("statistics hold NaN or infinity: the dense model overflows on their text")
    mean = gram.diagonal().mean()
    if mean == 0:
        return torch.eye(len(gram)).to(gram)
    gram.diagonal().add_(ridge * mean)
    factor: torch.Tensor = torch.linalg.cholesky(gram)
    return factor


def compensated(weight_DC: torch.Tensor, factor_CC: torch.Tensor, kept: int) -> torch.Tensor:
    """W_S + W_R L_RS L_SS^-1 in float64, rounded once to the dtype of `weight_DC`: [D, S]."""
    weight = weight_DC.detach().double()
    carried = weight[:, kept:] @ factor_CC[kept:, :kept]
    refit = torch.linalg.solve_triangular(factor_CC[:kept, :kept], carried, upper=False, left=False)
    refitted: torch.Tensor = (weight[:, :kept] + refit).to(weight_DC.dtype)
    return refitted


def relative_error(
    weight_DC: torch.Tensor, remaining_DS: torch.Tensor, gram_CC: torch.Tensor
) -> float:
    """E |W a - W' a_S|^2 / E |W a|^2 under a Gram matrix, which may be of another text than the
    one that W' was fitted on: what a fit is worth is seen there.

    Args:
        weight_DC: the whole projection, sorted as `gram_CC` is.
        remaining_DS: its remaining columns, refitted or not.
    """
    weight = weight_DC.detach().double()
    difference = weight.clone()
    difference[:, : remaining_DS.shape[1]] -= remaining_DS.detach().double()
    gram = gram_CC.double()
    lost = ((difference @ gram) * difference).sum()
    whole = ((weight @ gram) * weight).sum()
    return float(lost / whole) if whole > 0 else 0.0
