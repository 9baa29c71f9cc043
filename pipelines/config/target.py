"""Targets of a search and of a solution: costs, and how much of each is to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from omegaconf import MISSING

from pipelines.config.groups import at_least, not_allowed, one_of
from pruning.costs.memory import MemoryLoad, bytes_of
from pruning.costs.target import COST_NAMES, TIMED, CostName
from pruning.errors import InputError
from pruning.models.dtypes import NUM_BYTES


@dataclass
class TargetConfig:
    """What a shape must save, each as removed / dense; null: as it comes.

    A size stands for what may be left of the memory.

    Args:
        parameters: Parameters that go, removed / all.
        flops: FLOPs of a token that go, removed / all, at calibration.sequence_length.
        kv_cache: KV-cache bytes of a token that go, removed / all.
        memory: Bytes of weights and KV cache that go, removed / all, at the load that memory.*
            says; or what may be left, such as 16GB or 100MiB.
        latency: Time of a batch that goes, removed / all, by the table that latency= gives.
        prefill: Time of its prefill alone, by the same table.
        decode: Time of its decoding alone, by the same table.
    """

    parameters: float | None = MISSING
    flops: float | None = MISSING
    kv_cache: float | None = MISSING
    memory: int | float | str | None = MISSING
    latency: float | None = MISSING
    prefill: float | None = MISSING
    decode: float | None = MISSING


@dataclass
class MemoryConfig:
    """What memory is counted at: weights, and the KV cache of what is served at once.

    Args:
        context_length: Tokens of each sequence. null: calibration.sequence_length.
        batch_size: Sequences.
        dtype: Of weights and cache, as served.
    """

    context_length: int | None = MISSING
    batch_size: int = MISSING
    dtype: str = one_of(tuple(NUM_BYTES))

    def problems(self) -> list[str]:
        found = not_allowed(self, "memory.")
        return found + at_least(self, "memory.", context_length=1, batch_size=1)

    def load(self, sequence_length: int) -> MemoryLoad:
        """The load; `sequence_length` stands for a context that is not given."""
        return MemoryLoad(self.context_length or sequence_length, self.batch_size, self.dtype)


class HasTargets(Protocol):
    """Options called `search.NAME`."""

    target_ratio: float | None
    target: TargetConfig


Given = float | str
"""The share that goes, or a size that may be left."""
Asked = Mapping[str, tuple[CostName, Given]]
"""Cost, and what is asked for of it, by the name of the option."""

NAMES = ", ".join(f"search.target.{each.name}" for each in fields(TargetConfig))


def asked_for(search: HasTargets) -> Asked:
    """All targets."""
    found: dict[str, tuple[CostName, Given]] = {}
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
    found = []
    for name, (cost, given) in asked.items():
        if isinstance(given, str):
            try:
                bytes_of(given)
            except InputError as error:
                found.append(f"{name}: {error}; or give the share that goes, such as 0.2")
        elif not 0 < given < 1:
            rest = ", or a size such as 16GB" if cost == "memory" else _hint(given)
            found.append(
                f"{name}: {given:g}; it is removed / {whole.get(cost, 'dense')}, above 0 and "
                f"below 1{rest}"
            )
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


def targets_json(asked: Asked) -> dict[str, dict[str, Given]]:
    """`targets` in the files of a run, where more than a ratio of parameters is asked for."""
    if all(cost == "parameters" for cost, _ in asked.values()):
        return {}
    return {"targets": {name: ratio for name, (_, ratio) in asked.items()}}


def in_words(target_ratio: float | None, targets: Mapping[str, Given] | None) -> str:
    """For people: `20.0%`, which is of parameters, or `20.0% of parameters, 25.0% of latency`.

    Args:
        targets: of `targets_json`, where there are any.
    """
    if targets is None:
        return f"{target_ratio:.1%}"
    costs = {"target_ratio": "parameters", "flops": "FLOPs", "kv_cache": "KV cache"}
    names = {name: name.rpartition(".")[2] for name in targets}
    return ", ".join(
        f"{costs.get(names[name], names[name])} {given}"
        if isinstance(given, str)
        else f"{given:.1%} of {costs.get(names[name], names[name])}"
        for name, given in targets.items()
    )


def load_in_words(memory: Mapping[str, Any]) -> str:
    """For people, of a load as files have it: what memory is of."""
    return (
        f"weights and KV cache of {memory['batch_size']} x {memory['context_length']:,} tokens "
        f"({memory['dtype']})"
    )


def _hint(ratio: float) -> str:
    return f"; did you mean {ratio / 100:g}?" if 1 <= ratio < 100 else ""
