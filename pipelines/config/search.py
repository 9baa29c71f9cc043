"""Group `search`: its options, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import get_args

from omegaconf import MISSING

from pipelines.config.groups import at_least, chosen, not_allowed, one_of
from pipelines.config.lazy import LazyConfig
from pipelines.config.renamed import LAYOUTS, constraint_of
from pipelines.config.target import Asked, TargetConfig, asked_for, target_problems
from pruning.costs.target import Target
from pruning.importance.criteria import Importance
from pruning.models.geometry import Geometry
from pruning.search.settings import (
    COMPENSATIONS,
    JUDGES,
    SELECTIONS,
    SHAPE_CONSTRAINTS,
    STRATEGY_NAMES,
    SearchSettings,
)
from pruning.search.strategies import STRATEGIES
from pruning.search.strategy import Strategy

DEFAULT_RATIO = 0.10
"""Of a search that is not told where to end."""
_CHOICES = {"greedy": "multipruner"}
"""What `search=` calls a strategy that is not called so there."""
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)


@dataclass
class SearchConfig:
    """Group `search`."""

    strategy: str = one_of(STRATEGY_NAMES)
    selection: str = one_of(SELECTIONS)
    judged_by: str = one_of(JUDGES)
    lazy: LazyConfig = field(default_factory=LazyConfig)
    seed: int | None = MISSING
    rounds: int | None = MISSING
    table_ratio: float | None = MISSING
    target_ratio: float | None = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)
    distribution: list[float] = MISSING
    mlp_group_channels: int | None = MISSING
    head_group_channels: int | None = MISSING
    importance: str = one_of(IMPORTANCES)
    shape_constraint: str = one_of(SHAPE_CONSTRAINTS)
    layout: str | None = one_of(tuple(LAYOUTS))
    compensation: str = one_of(COMPENSATIONS)

    def __post_init__(self) -> None:
        """Commands and experiments of version 0.1.0 say `layout`. A ratio of parameters has one
        name, and a default where nothing is asked for.
        """
        if self.layout in LAYOUTS and self.shape_constraint == "none":
            self.shape_constraint = constraint_of(self.layout)
        if self.target_ratio is None:
            self.target_ratio, self.target.parameters = self.target.parameters, None
        if not self.asked:
            self.target_ratio = DEFAULT_RATIO

    @property
    def is_lazy(self) -> bool:
        """Whether candidates are left out."""
        return self.selection == "lazy"

    @property
    def asked(self) -> Asked:
        """All targets."""
        return asked_for(self)

    def resolved(self, geometry: Geometry, targets: Sequence[Target] = ()) -> SearchSettings:
        """These settings for a model of these sizes; call `problems` first.

        Args:
            targets: those in other costs than parameters.
        """
        return SearchSettings.resolved(
            geometry,
            strategy=chosen(self.strategy, STRATEGY_NAMES),
            target_ratio=self.target_ratio or 0.0,
            distribution=self.distribution,
            mlp_group_channels=self.mlp_group_channels,
            head_group_channels=self.head_group_channels,
            importance=chosen(self.importance, IMPORTANCES),
            shape_constraint=chosen(self.shape_constraint, SHAPE_CONSTRAINTS),
            compensation=chosen(self.compensation, COMPENSATIONS),
            seed=self.seed,
            rounds=self.rounds,
            table_ratio=self.table_ratio,
            targets=targets,
            lazy=self.lazy.settings if self.is_lazy else None,
            judged_by=chosen(self.judged_by, JUDGES),
        )

    def problems_of_new(self, given: Sequence[str], common: Sequence[str] = ()) -> list[str]:
        """Options that somebody gave, by name, and that do nothing in these settings, or by two
        names at once.

        Runs that are there already go on with what they were given.

        Args:
            common: names of more options that were given, which may do nothing.
        """
        shares, why = list(self.distribution), dict[str, str]()
        if len(shares) == 3:
            why["mlp_group_channels"] = "" if shares[1] else "no MLP is narrowed"
            why["head_group_channels"] = "" if shares[2] else "no attention block is narrowed"
            why["importance"] = "" if any(shares[1:]) else "no width changes"
        found = [
            f"search.{name}: {getattr(self, name)}, which has no effect with "
            f"search.distribution={shares}: {reason}; leave it out"
            for name, reason in why.items()
            if reason and f"search.{name}" in given and getattr(self, name) is not None
        ]
        names = [name for name in given if name.startswith("search.lazy.")]
        if names and not self.is_lazy:
            found.append(
                f"{', '.join(names)}: no effect with search.selection={self.selection}; leave out"
            )
        return found + self._problems_of_names({*given, *common})

    def _problems_of_names(self, given: Collection[str]) -> list[str]:
        """Whether an option has a value by its old name and by its current one.

        One that an experiment has by its old name is overridden, but for `portable`: it would take
        the place of the `none` that somebody asks for.
        """
        if self.layout is None or "search.shape_constraint" not in given:
            return []
        if "search.layout" not in given and LAYOUTS.get(self.layout, "none") == "none":
            return []
        return [
            "search.layout, search.shape_constraint: both are given; leave search.layout out, "
            "which is the old name, or give search.layout=null where an experiment has it"
        ]

    def problems(self) -> list[str]:
        found = not_allowed(self, "search.")
        strategy = STRATEGIES.get(self.strategy)
        for name in ("seed", "rounds", "table_ratio"):
            value = getattr(self, name)
            if value is not None and strategy is not None and name not in strategy.options:
                users = [other for other, each in STRATEGIES.items() if name in each.options]
                found.append(
                    f"search.{name}: {value}, which has no effect with "
                    f"search.strategy={self.strategy}; it is for {', '.join(users)}"
                )
        ratios: Asked = (
            {}
            if self.table_ratio is None
            else {"search.table_ratio": ("parameters", self.table_ratio)}
        )
        found += target_problems({**self.asked, **ratios})
        others = [name for name, (cost, _) in self.asked.items() if cost != "parameters"]
        if others and strategy is not None and not strategy.any_cost:
            users = [
                f"search={_CHOICES.get(name, name)}"
                for name, each in STRATEGIES.items()
                if each.any_cost
            ]
            found.append(
                f"{', '.join(others)}: not for search.strategy={self.strategy}, which ends by its "
                f"share of parameters, search.target_ratio; use {', '.join(users)}"
            )
        found += self._distribution_problems(strategy)
        if (
            strategy is not None
            and self.shape_constraint in SHAPE_CONSTRAINTS
            and self.shape_constraint not in strategy.constraints
        ):
            found.append(
                f"search.shape_constraint: {self.shape_constraint}, which search.strategy="
                f"{self.strategy} does not keep; it takes {', '.join(strategy.constraints)}"
            )
        found += self._choice_problems(strategy) + self.lazy.problems()
        found += self._compensation_problems()
        found += at_least(self, "search.", mlp_group_channels=1, head_group_channels=1, rounds=1)
        return found

    def _choice_problems(self, strategy: type[Strategy] | None) -> list[str]:
        """Ways to choose among candidates, where there is one only, and two that do not agree."""
        found = []
        users = [name for name, each in STRATEGIES.items() if each.compares_candidates]
        for name, default in (("selection", SELECTIONS[0]), ("judged_by", JUDGES[0])):
            value = getattr(self, name)
            if value != default and strategy is not None and not strategy.compares_candidates:
                found.append(
                    f"search.{name}: {value}, but a step of search.strategy={self.strategy} has "
                    f"one candidate; it is for {', '.join(users)}"
                )
        if self.is_lazy and self.judged_by != JUDGES[0]:
            found.append(
                f"search.judged_by: {self.judged_by}, with search.selection=lazy, which leaves "
                "candidates out by their scores; use search.selection=exhaustive"
            )
        return found

    def _distribution_problems(self, strategy: type[Strategy] | None) -> list[str]:
        """Whether the shares are shares, and what the strategy can make of them."""
        shares = list(self.distribution)
        given = f"search.distribution: {shares}"
        if (
            len(shares) != 3
            or not all(math.isfinite(share) and share >= 0 for share in shares)
            or sum(shares) <= 0
        ):
            return [
                f"{given}; it takes three numbers >= 0 with a positive sum, the shares of blocks, "
                "MLP channels and attention heads, such as [44,52,4]"
            ]
        if strategy is None:
            return []
        given += f", but search.strategy={self.strategy}"
        if strategy.blocks_only and sum(shares[1:]) > 0:
            return [
                f"{given} removes whole blocks only; use search.distribution=[1,0,0], as "
                "search=shortgpt and search=random do"
            ]
        if strategy.channels_only and (shares[0] or shares[2]):
            return [
                f"{given} narrows MLPs only; use search.distribution=[0,1,0], as search=uniform "
                "does"
            ]
        if strategy.solves_shares and shares not in ([0, 1, 1], [0, 1, 0]):
            return [
                f"{given} finds out how much each kind of block loses; [0,1,1] lets MLPs and KV "
                "heads lose, [0,1,0] MLPs alone"
            ]
        return []

    def _compensation_problems(self) -> list[str]:
        shares, found = list(self.distribution), []
        if self.compensation in COMPENSATIONS[1:] and any(shares[:1]) and not any(shares[1:]):
            found.append(
                f"search.compensation: {self.compensation}, which has no effect with "
                f"search.distribution={shares}: no width changes; use search.compensation=none"
            )
        if self.compensation != "none" and self.importance != "activation":
            found.append(
                f"search.compensation: {self.compensation} with search.importance="
                f"{self.importance}; it goes with search.importance=activation, whose order comes "
                "from the same statistics"
            )
        return found
