"""What crosses the boundary between driver and evaluator: plain, frozen, small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pruning.calibration import SetName, Tokens
from pruning.checkpoint import Checkpoint
from pruning.importance import ChannelOrder, Importance
from pruning.shape import Removal


@dataclass(frozen=True, slots=True)
class EvaluatorSpec:
    """Everything that an evaluator is made from.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, resolved.
        token_sets: the calibration sets, int64 [sequences, length] each.
        batch_size: sequences that are scored together. Part of every cache key, since it changes rounding.
        num_threads: CPU threads of the evaluator's own process.
    """

    checkpoint: Checkpoint
    dtype: str
    token_sets: Mapping[SetName, Tokens] = field(repr=False)
    batch_size: int
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """NLL of some candidates on one batch: a pure function of its fields, safe to repeat anywhere.

    Args:
        base: canonical text of the shape that the candidates are removed from.
        candidates: what each takes away; None scores `base` itself.
        order: fingerprint of the channel order that the shapes refer to.
    """

    set_name: SetName
    batch: int
    base: str
    candidates: tuple[Removal | None, ...]
    order: str

    def cost(self, num_layers: int) -> float:
        """Relative cost, in layers run: the prefix once, the suffix of every candidate."""
        return num_layers + sum(num_layers - (candidate.layer if candidate else num_layers - 1) for candidate in self.candidates)

    def __str__(self) -> str:
        names = ", ".join(str(candidate) if candidate else "base" for candidate in self.candidates[:3])
        more = f" and {len(self.candidates) - 3} more" if len(self.candidates) > 3 else ""
        return f"{self.set_name} batch {self.batch}: {names}{more}"


@dataclass(frozen=True, slots=True)
class OrderTask:
    """The channel order of the dense model, from the whole width calibration set."""

    importance: Importance

    def cost(self, num_layers: int) -> float:
        return float(num_layers)

    def __str__(self) -> str:
        return f"channel order by {self.importance}"


Task = ScoreTask | OrderTask


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """`nll` [candidates][sequences] in nats summed over the `num_tokens` predicted tokens of each sequence."""

    nll: tuple[tuple[float, ...], ...]
    num_tokens: int
    seconds: float


Result = ScoreResult | ChannelOrder


@dataclass(frozen=True, slots=True)
class EvaluatorInfo:
    """Where an evaluator runs and what it sees, for logs, checks and tests."""

    pid: int
    node: str
    device: str
    visible_gpus: tuple[str, ...]
    num_threads: int
