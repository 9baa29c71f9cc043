"""Every strategy by its name."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.search.allocation_path import AllocationStrategy
from pruning.search.fixed import BlockInfluenceStrategy, RandomStrategy
from pruning.search.greedy_strategy import GreedyStrategy
from pruning.search.settings import SearchSettings
from pruning.search.strategy import Strategy
from pruning.search.uniform import UniformStrategy

STRATEGIES: Mapping[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        GreedyStrategy,
        BlockInfluenceStrategy,
        RandomStrategy,
        UniformStrategy,
        AllocationStrategy,
    )
}


def strategy_of(settings: SearchSettings) -> Strategy:
    """The strategy that these settings name."""
    return STRATEGIES[settings.strategy](settings)
