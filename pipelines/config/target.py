"""Targets of a search and of a solution: costs, and how much of each is to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

from omegaconf import MISSING

from pruning.costs.target import COST_NAMES, TIMED, CostName


@dataclass
class TargetConfig:
    """What a shape must save, each as removed / dense; null: as it comes.

    Args:
        parameters: Parameters that go, removed / all.
        flops: FLOPs of a token that go, removed / all, at calibration.sequence_length.
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


class HasTargets(Protocol):
    """Options called `search.NAME`."""

    target_ratio: float | None
    target: TargetConfig


Asked = Mapping[str, tuple[CostName, float]]
"""Cost and ratio that are asked for, by the name of the option."""

NAMES = ", ".join(f"search.target.{each.name}" for each in fields(TargetConfig))


def asked_for(search: HasTargets) -> Asked:
    """All targets."""
    found: dict[str, tuple[CostName, float]] = {}
    if search.target_ratio is not None:
        found["search.target_ratio"] = ("parameters", search.target_ratio)
    for name in COST_NAMES:
        ratio = getattr(search.target, name)
        if ratio is not None:
            found[f"search.target.{name}"] = (name, ratio)
    return found


def target_problems(asked: Asked) -> list[str]:
    """What is wrong with the targets."""
    whole = {"parameters": "all parameters"}
    found = [
        f"{name}: {ratio:g}; it is removed / {whole.get(cost, 'dense')}, above 0 and below 1"
        f"{_hint(ratio)}"
        for name, (cost, ratio) in asked.items()
        if not 0 < ratio < 1
    ]
    if {"search.target_ratio", "search.target.parameters"} <= asked.keys():
        found.append(
            "search.target_ratio, search.target.parameters: both are given, and are the same; "
            "give one of them"
        )
    return found


def table_problems(asked: Asked, latency: str | None) -> list[str]:
    """Whether a table of latencies is there where targets are by one, and only there."""
    timed = [name for name, (cost, _) in asked.items() if cost in TIMED]
    if timed and latency is None:
        return [
            f"{', '.join(timed)}: given without a table; give latency=FILE, the latency.json of "
            "multipruner latency"
        ]
    if latency is not None and not timed:
        return [
            f"latency: {latency}, which has no effect without one or more of "
            f"{', '.join(f'search.target.{name}' for name in TIMED)}"
        ]
    return []


def targets_json(asked: Asked) -> dict[str, dict[str, float]]:
    """`targets` in the files of a run, where more than a ratio of parameters is asked for."""
    if all(cost == "parameters" for cost, _ in asked.values()):
        return {}
    return {"targets": {name: ratio for name, (_, ratio) in asked.items()}}


def in_words(target_ratio: float | None, targets: Mapping[str, float] | None) -> str:
    """For people: `20.0%`, which is of parameters, or `20.0% of parameters, 25.0% of latency`.

    Args:
        targets: of `targets_json`, where there are any.
    """
    if targets is None:
        return f"{target_ratio:.1%}"
    costs = {"target_ratio": "parameters", "flops": "FLOPs", "kv_cache": "KV cache"}
    names = {name: name.rpartition(".")[2] for name in targets}
    return ", ".join(
        f"{ratio:.1%} of {costs.get(names[name], names[name])}" for name, ratio in targets.items()
    )


def _hint(ratio: float) -> str:
    return f"; did you mean {ratio / 100:g}?" if 1 <= ratio < 100 else ""
