"""What `pipelines.solve` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from omegaconf import MISSING, DictConfig

from pipelines.config.groups import at_least, checked, not_allowed, one_of
from pipelines.config.target import (
    NAMES,
    Asked,
    MemoryConfig,
    TargetConfig,
    asked_for,
    table_problems,
    target_problems,
)
from pruning.search.settings import SHAPE_CONSTRAINTS


@dataclass
class SolveSearchConfig:
    """Options called `search.NAME`, as those of a search are.

    Args:
        target_ratio: Short for search.target.parameters.
        shape_constraint: none, deployable or one_width, as of a search. null: that of the run.
        width_multiple: MLP widths are multiples of that many channels.
        whole_attention: Every attention keeps all its heads.
        whole_blocks: Every block is whole or gone. The table has such sizes where groups are large
            enough: with search.mlp_group_channels of half an MLP in the run.
    """

    target_ratio: float | None = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)
    shape_constraint: str | None = one_of(SHAPE_CONSTRAINTS)
    width_multiple: int | None = MISSING
    whole_attention: bool = MISSING
    whole_blocks: bool = MISSING


@dataclass
class SolveConfig:
    """Everything that `pipelines.solve` takes."""

    run: str | None = MISSING
    latency: str | None = MISSING
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    search: SolveSearchConfig = field(default_factory=SolveSearchConfig)
    grid: dict[str, Any] = field(default_factory=dict)
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    @property
    def targets(self) -> Asked:
        """Cost and ratio that are asked for, by the name of the option."""
        return asked_for(self.search)

    def problems(self) -> list[str]:
        search, targets = self.search, self.targets
        found = not_allowed(search, "search.")
        if self.run is None:
            found.append("run: missing; give the output_dir of a run of search=allocation")
        if not targets:
            found.append(f"search.target_ratio: missing; give it, or one or more of {NAMES}")
        found += table_problems(targets, self.latency) + target_problems(targets)
        return found + self.memory.problems() + at_least(search, "search.", width_multiple=1)
