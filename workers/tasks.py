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

    @property
    def prefix_key(self) -> tuple[str, int, str]:
        """What the prefix depends on: tasks that agree on it run it once on the same evaluator."""
        return (self.set_name, self.batch, self.base)

    def __str__(self) -> str:
        names = ", ".join(str(candidate) if candidate else "base" for candidate in self.candidates[:3])
        more = f" and {len(self.candidates) - 3} more" if len(self.candidates) > 3 else ""
        return f"{self.set_name} batch {self.batch}: {names}{more}"


@dataclass(frozen=True, slots=True)
class OrderTask:
    """The channel order of the dense model, from the whole width calibration set."""

    importance: Importance

    def __str__(self) -> str:
        return f"channel order by {self.importance}"


Task = ScoreTask | OrderTask


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """`nll` [candidates][sequences] in nats summed over the `num_tokens` predicted tokens of each sequence.

    Args:
        seconds: that the evaluator took.
        ran_prefix: false if it had the prefix from the task before.
        halved: the batch was too large for the device's memory and was run in two halves, which can change the last digits.
    """

    nll: tuple[tuple[float, ...], ...]
    num_tokens: int
    seconds: float
    ran_prefix: bool = True
    halved: bool = False


Result = ScoreResult | ChannelOrder


@dataclass(frozen=True, slots=True)
class EvaluatorInfo:
    """Where an evaluator runs and what it sees.

    Args:
        device: kind of device, as exactly as rounding depends on it: `cpu AVX2`, `cuda NVIDIA H100 80GB HBM3`.
        torch_version: without its build, which differs between CPU and GPU.
    """

    pid: int
    node: str
    device: str
    visible_gpus: tuple[str, ...]
    num_threads: int
    torch_version: str
    node_id: str = ""

    def __str__(self) -> str:
        gpus = f", GPU {','.join(self.visible_gpus)}" if self.visible_gpus else ""
        return f"{self.node}, pid {self.pid}, {self.device}{gpus}"
