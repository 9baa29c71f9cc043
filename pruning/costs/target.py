"""What a target is given in: a cost of a shape, and the share of it that is to go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from pruning.costs.accounting import Accounting
from pruning.costs.memory import MemoryLoad, bytes_of
from pruning.shape import ModelShape

CostName = Literal["parameters", "flops", "kv_cache", "memory", "latency", "prefill", "decode"]
"""Parameters by the published convention, FLOPs of a token, KV-cache bytes of a token, bytes of
weights and cache at a load; nanoseconds of a batch by a table of latencies: all of it, its prefill,
its decoding.
"""

COST_NAMES: tuple[CostName, ...] = get_args(CostName)
TIMED: tuple[CostName, ...] = ("latency", "prefill", "decode")
"""Those that a table of latencies knows (`pruning.costs.latency`)."""
COUNTED: tuple[CostName, ...] = ("parameters", "flops", "kv_cache")
"""Those that depend on the model alone, and on no device or load."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of the shapes of a model: a sum over blocks.

    Args:
        of: that of a shape.
        dense: that of the dense model, above 0.
    """

    name: CostName
    of: Callable[[ModelShape], int]
    dense: int

    def ratio(self, shape: ModelShape) -> float:
        """What a shape saves / what the dense model costs, 0..1."""
        return (self.dense - self.of(shape)) / self.dense

    def to_json(self, shape: ModelShape) -> dict[str, float]:
        """As `summary.json` and `solution.json` have it."""
        return {"dense": self.dense, "pruned": self.of(shape), "ratio": self.ratio(shape)}


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for of one cost.

    Args:
        name: of the option: `search.target.flops`.
        given: the share of the dense model's that goes, above 0 and below 1; or what is left at
            most, a size such as `16GB`.
    """

    name: str
    cost: Cost
    given: float | str

    @property
    def most(self) -> float:
        """What a shape may cost."""
        if isinstance(self.given, str):
            return bytes_of(self.given)
        return (1 - self.given) * self.cost.dense


def costs_of(
    accounting: Accounting, *, context_length: int, load: MemoryLoad | None = None
) -> Mapping[CostName, Cost]:
    """All costs that are known of a model from its configuration, by name.

    Args:
        context_length: tokens of the context that FLOPs are counted at.
        load: that memory is counted at; None: it is left out.
    """

    counts: dict[CostName, Callable[[ModelShape], int | None]] = {
        "parameters": accounting.num_parameters,
        "flops": partial(accounting.flops_per_token, context_length=context_length),
        "kv_cache": partial(accounting.kv_cache_bytes_per_token, bytes_per_value=2),
    }
    if load is not None:
        counts["memory"] = partial(load.total_bytes, accounting)
    dense = {name: count(accounting.dense) for name, count in counts.items()}
    return {
        name: Cost(name, partial(_known, count), whole)
        for (name, count), whole in zip(counts.items(), dense.values(), strict=True)
        if whole
    }


def _known(count: Callable[[ModelShape], int | None], shape: ModelShape) -> int:
    """A count that is known of every shape of a model if it is known of the dense one."""
    found = count(shape)
    assert found is not None
    return found
