"""What measuring and solving came to, as a file of the run holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pruning.canonical_json import dump_json
from pruning.costs.accounting import Accounting
from pruning.search.allocation import Block, resized, size_of
from pruning.shape import ModelShape, Resize


@dataclass(frozen=True, slots=True)
class Allocation:
    """What measuring and solving came to.

    Args:
        start: the uniform shape of the target, which the first round was measured around unless
            its table is that of another ratio.
        start_score, score: KL from the dense model of `start` and of `shape`, nats per token.
        num_shapes: that were scored.
        rounds: for people, as `allocation.json` has them.
        deviating: scores of these shapes that came about otherwise than the others, by how.
    """

    start: ModelShape
    shape: ModelShape
    start_score: float
    score: float
    num_shapes: int
    rounds: tuple[Mapping[str, Any], ...]
    deviating: Mapping[str, int] = field(default_factory=dict)

    def prices(self, accounting: Accounting) -> dict[Block, float]:
        """KL in nats per token that one percent of the model's parameters costs in each block, by
        the last round's smallest step down of it; without those that were not measured smaller.
        """
        last = self.rounds[-1]
        base = ModelShape.parse(last["base"])
        steps: dict[Block, tuple[int, float]] = {}
        for change in last["changes"]:
            block: Block = (change["layer"], change["unit"])
            size, kl = change["size"], change["kl"]
            if kl is not None and size < size_of(base, block):
                steps[block] = max((size, kl), steps.get(block, (size, kl)))
        whole = accounting.num_parameters(base)
        return {
            block: kl
            * accounting.num_dense_parameters
            / (100 * (whole - accounting.num_parameters(resized(base, block, size))))
            for block, (size, kl) in steps.items()
        }

    def save(self, path: Path) -> None:
        data = {
            "start": self.start.text,
            "shape": self.shape.text,
            "start_kl": self.start_score,
            "kl": self.score,
            "num_shapes": self.num_shapes,
            **({"deviating": dict(self.deviating)} if self.deviating else {}),
            "rounds": list(self.rounds),
        }
        path.write_text(dump_json(data), encoding="utf-8")

    def measured(self) -> frozenset[ModelShape]:
        """The shapes that were scored, as far as the rounds tell."""
        found = {self.start}
        for each in self.rounds:
            base = ModelShape.parse(each["base"])
            found |= {base, *(ModelShape.parse(other["shape"]) for other in each["solutions"])}
            found |= {
                base.resized(Resize(change["layer"], change["unit"], change["size"]))
                for change in each["changes"]
            }
        return frozenset(found)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The inverse of `save`."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            ModelShape.parse(data["start"]),
            ModelShape.parse(data["shape"]),
            data["start_kl"],
            data["kl"],
            data["num_shapes"],
            tuple(data["rounds"]),
            data.get("deviating", {}),
        )
