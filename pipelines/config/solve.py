"""What `pipelines.solve` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from omegaconf import MISSING, DictConfig

from pipelines.config.groups import at_least, checked, not_allowed, one_of
from pruning.costs.target import COST_NAMES, TIMED, CostName
from pruning.search.settings import SHAPE_CONSTRAINTS


@dataclass
class TargetConfig:
    """What a shape must save, each as removed / dense; null: as it comes.

    Args:
        parameters: Parameters that go, removed / all.
        flops: FLOPs of a token that go, removed / all, at calibration.sequence_length of the run.
        kv_cache: KV-cache bytes of a token that go, removed / all.
        latency: Time of a batch that goes, removed / all, by the table that latency= gives.
        prefill: Time of its prefill alone, by the same table.
        decode: Time of its decoding alone, by the same table.
    """

    parameters: float | None = MISSING
    flops: float | None = MISSING
    kv_cache: float | None = MISSING
    latency: float | None = MISSING
    prefill: float | None = MISSING
    decode: float | None = MISSING


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
    search: SolveSearchConfig = field(default_factory=SolveSearchConfig)
    grid: dict[str, Any] = field(default_factory=dict)
    output_dir: str | None = MISSING

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """See `checked`."""
        return checked(cls, config, cls.problems)

    @property
    def targets(self) -> Mapping[str, tuple[CostName, float]]:
        """Cost and ratio that are asked for, by the name of the option."""
        found: dict[str, tuple[CostName, float]] = {}
        if self.search.target_ratio is not None:
            found["search.target_ratio"] = ("parameters", self.search.target_ratio)
        for name in COST_NAMES:
            ratio = getattr(self.search.target, name)
            if ratio is not None:
                found[f"search.target.{name}"] = (name, ratio)
        return found

    def problems(self) -> list[str]:
        search = self.search
        found = not_allowed(search, "search.")
        if self.run is None:
            found.append("run: missing; give the output_dir of a run of search=allocation")
        if not self.targets:
            names = ", ".join(f"search.target.{each.name}" for each in fields(search.target))
            found.append(f"search.target_ratio: missing; give it, or one or more of {names}")
        timed = [name for name, (cost, _) in self.targets.items() if cost in TIMED]
        if timed and self.latency is None:
            found.append(
                f"{', '.join(timed)}: given without a table; give latency=FILE, the latency.json "
                "of multipruner latency"
            )
        if self.latency is not None and not timed:
            found.append(
                f"latency: {self.latency}, which has no effect without one or more of "
                f"{', '.join(f'search.target.{name}' for name in TIMED)}"
            )
        found += [
            f"{name}: {ratio:g}; it is removed / dense, above 0 and below 1"
            for name, (_, ratio) in self.targets.items()
            if not 0 < ratio < 1
        ]
        if {"search.target_ratio", "search.target.parameters"} <= self.targets.keys():
            found.append(
                "search.target_ratio, search.target.parameters: both are given, and are the same; "
                "give one of them"
            )
        return found + at_least(search, "search.", width_multiple=1)
