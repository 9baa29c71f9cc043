"""What crosses the boundary between driver and evaluator: plain, frozen, small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from pruning.calibration.token_sets import Tokens, TokenSet
from pruning.compensation.statistics import LayerOrder, LayerStatistics
from pruning.costs.block_times import Levels
from pruning.costs.latency import BlockTimes
from pruning.costs.measured import Role, SpeedComparison
from pruning.costs.speed import SpeedSettings
from pruning.importance.block_influence import LayerSimilarity
from pruning.importance.channel_order import ChannelOrder
from pruning.importance.criteria import Importance
from pruning.models.checkpoint import Checkpoint
from pruning.scoring.arithmetic import Arithmetic
from pruning.shape import Removal, Resize
from workers.prefix import PrefixKey


@dataclass(frozen=True, slots=True)
class EvaluatorSpec:
    """Everything that an evaluator is made from.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, resolved.
        token_sets: the calibration sets by name, int64 [sequences, length] each.
        batch_size: sequences that are scored together. Part of every cache key, since it changes
            rounding.
        num_threads: CPU threads of the evaluator's own process.
    """

    checkpoint: Checkpoint
    dtype: str
    token_sets: Mapping[str, Tokens] = field(repr=False)
    batch_size: int
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """Everything that a `BenchmarkEvaluator` is made from.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, resolved.
        shape: canonical text of what remains of the model after its weights are sorted by `order`;
            None takes the checkpoint as it is.
        batch_size: requests that run together. Above 1 they are padded, so it is part of every
            answer's key.
        max_length: tokens that a request may have, longer ones lose their beginning; None is what
            the model can take.
        num_threads: CPU threads of the evaluator's own process.
    """

    checkpoint: Checkpoint
    dtype: str
    shape: str | None = None
    order: ChannelOrder | None = field(default=None, repr=False)
    batch_size: int = 1
    max_length: int | None = None
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class SpeedSpec:
    """Everything that a `SpeedEvaluator` is made from: one model, or two."""

    dense: BenchmarkSpec | None
    pruned: BenchmarkSpec | None

    @property
    def checkpoint(self) -> Checkpoint:
        spec = self.pruned or self.dense
        assert spec is not None
        return spec.checkpoint

    @property
    def num_threads(self) -> int:
        spec = self.pruned or self.dense
        assert spec is not None
        return spec.num_threads


ScoreKind = Literal["nll", "kl"]
"""Of the next tokens, or the divergence from the dense model's distributions."""

Candidate = Removal | Resize | None
"""What a candidate changes of the current shape; None is that shape itself."""


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Scores of some candidates on one batch: a pure function of its fields, safe to repeat
    anywhere.

    Args:
        set_name: of `EvaluatorSpec.token_sets`.
        base: canonical text of the shape that the candidates differ from.
        candidates: what each changes; None scores `base` itself.
        order: fingerprint of the channel order that the shapes refer to.
    """

    set_name: str
    batch: int
    base: str
    candidates: tuple[Candidate, ...]
    order: str
    kind: ScoreKind = "nll"

    @property
    def prefix_key(self) -> PrefixKey:
        """Tasks that agree on it run the prefix once on the same evaluator."""
        return (self.set_name, self.batch, self.base)

    @property
    def num_evaluations(self) -> int:
        return len(self.candidates)

    def __str__(self) -> str:
        names = ", ".join(str(each) if each else "base" for each in self.candidates[:3])
        more = f" and {len(self.candidates) - 3} more" if len(self.candidates) > 3 else ""
        return f"{self.set_name} batch {self.batch}: {names}{more}"


@dataclass(frozen=True, slots=True)
class OrderTask:
    """The channel order of the dense model, from a whole calibration set."""

    importance: Importance
    set_name: str = "width"
    size: ClassVar[int] = 1
    num_evaluations: ClassVar[int] = 0

    @property
    def kind(self) -> str:
        return f"order by {self.importance} of {self.set_name}"

    def __str__(self) -> str:
        return f"channel order by {self.importance}"


@dataclass(frozen=True, slots=True)
class StatisticsTask:
    """Gram matrices of some layers of the dense model as stored, from a whole calibration set."""

    layers: tuple[int, ...]
    set_name: str = "width"
    kind: ClassVar[str] = "statistics"
    num_evaluations: ClassVar[int] = 0

    @property
    def size(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return f"statistics of layers {self.layers[0]} to {self.layers[-1]}"


@dataclass(frozen=True, slots=True)
class StatisticsResult:
    """Those of the task's layers, the order `activation` of each, and the tokens summed over."""

    layers: Mapping[int, LayerStatistics]
    orders: Mapping[int, LayerOrder]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class InfluenceTask:
    """What each layer of the dense model does to one batch (`pruning.importance.block_influence`):
    a pure function of its fields.

    Args:
        order: fingerprint of the channel order that the weights are in, which changes the last
            digits.
    """

    batch: int
    order: str
    set_name: str = "block"
    kind: ClassVar[str] = "influence"
    size: ClassVar[int] = 1
    num_evaluations: ClassVar[int] = 0

    def __str__(self) -> str:
        return f"block influence on {self.set_name} batch {self.batch}"


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """How the model in a shape goes on with some texts, by greedy decoding: a pure function of its
    fields.

    Args:
        shape: canonical text.
        order: fingerprint of the channel order that it refers to.
        prompts: tokens of each text.
        num_tokens: to add to each.
    """

    shape: str
    order: str
    prompts: tuple[tuple[int, ...], ...]
    num_tokens: int
    kind: ClassVar[str] = "generation"
    num_evaluations: ClassVar[int] = 0

    @property
    def size(self) -> int:
        return len(self.prompts) * self.num_tokens

    def __str__(self) -> str:
        return f"{len(self.prompts)} x {self.num_tokens} tokens of {self.shape}"


Continuations = tuple[tuple[int, ...], ...]
"""What a `GenerationTask` is answered with: the tokens that were added to each of its prompts."""

RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
REQUEST_KINDS: tuple[str, ...] = get_args(RequestKind)


@dataclass(frozen=True, slots=True)
class RequestTask:
    """Some of lm-eval's requests, answered together: a pure function of them and of the evaluator's
    `BenchmarkSpec`.

    Args:
        digest: SHA-256 over kind and requests, 32 hexadecimal digits.
        requests: the arguments of each: (context, continuation), (text,) or (context, generation
            settings).
        label: what they are, in words.
    """

    kind: RequestKind
    digest: str
    requests: tuple[tuple[Any, ...], ...] = field(repr=False, compare=False)
    label: str = field(default="", compare=False)

    @classmethod
    def of(
        cls, kind: RequestKind, requests: Sequence[tuple[Any, ...]], label: str = ""
    ) -> RequestTask:
        """Raises TypeError if a request holds more than text, numbers, lists and mappings."""
        text = json.dumps([kind, list(requests)], sort_keys=True)
        return cls(kind, hashlib.sha256(text.encode()).hexdigest()[:32], tuple(requests), label)

    @property
    def num_evaluations(self) -> int:
        return len(self.requests)

    @property
    def size(self) -> int:
        """What its time grows with: characters."""
        texts = (part for request in self.requests for part in request if isinstance(part, str))
        return sum(map(len, texts)) + 1

    def __str__(self) -> str:
        return f"{len(self.requests)} requests ({self.kind}) of {self.label or self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class WindowTask:
    """Equally long windows of tokens, int64 [B, T], run as one batch.

    Args:
        digest: SHA-256 over shape and tokens, 32 hexadecimal digits.
    """

    digest: str
    input_ids: Tokens = field(repr=False, compare=False)
    label: str = field(default="", compare=False)
    kind: ClassVar[Literal["windows"]] = "windows"

    @classmethod
    def of(cls, input_ids: Tokens, label: str = "") -> WindowTask:
        return cls(TokenSet(input_ids).fingerprint, input_ids, label)

    @property
    def num_evaluations(self) -> int:
        return len(self.input_ids)

    @property
    def size(self) -> int:
        """What its time grows with: tokens."""
        return int(self.input_ids.size)

    def __str__(self) -> str:
        return f"{len(self.input_ids)} windows of {self.label or self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class SpeedTask:
    """What the models cost, and how fast they are.

    Args:
        disk_bytes: (role, bytes) of the weight files.
    """

    settings: SpeedSettings
    disk_bytes: tuple[tuple[Role, int], ...]
    kind: ClassVar[str] = "speed"
    size: ClassVar[int] = 1
    num_evaluations: ClassVar[int] = 0

    def __str__(self) -> str:
        return "speed"


@dataclass(frozen=True, slots=True)
class LatencyTask:
    """What each block takes at each of these sizes."""

    settings: SpeedSettings
    levels: Levels
    kind: ClassVar[str] = "latency"
    size: ClassVar[int] = 1
    num_evaluations: ClassVar[int] = 0

    def __str__(self) -> str:
        return "latency of blocks"


AnswerTask = RequestTask | WindowTask
ClockedTask = SpeedTask | LatencyTask
"""Is measured with a clock: a second one beside it would slow it down."""
DenseTask = OrderTask | StatisticsTask | InfluenceTask
WholeTask = DenseTask | GenerationTask | AnswerTask | ClockedTask
"""Is never split. Its time is expected to grow with its `size`, among tasks of its `kind`."""
Task = ScoreTask | WholeTask


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """`nll` [candidates][sequences] in nats summed over the `num_tokens` predicted tokens of each
    sequence; of a task of kind `kl` the divergence.

    Args:
        seconds: that the evaluator took.
        prefix_layers: that it ran; the others it had from the task before.
        oom_split: the batch was too large for the device's memory and was run in two halves, which
            can change the last digits.
        arithmetic: of the evaluator; None where that does not matter.
    """

    nll: tuple[tuple[float, ...], ...]
    num_tokens: int
    seconds: float
    prefix_layers: int = 0
    oom_split: bool = False
    arithmetic: Arithmetic | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """`answers` in the order of the task: (log-likelihood in nats, whether greedy decoding gives
    it) of each `loglikelihood` request, the log-likelihood of each `loglikelihood_rolling`, the
    text of each `generate_until`, the NLL of each window in nats summed over its T - 1 predicted
    tokens.

    Args:
        seconds: that the evaluator took.
        num_truncated: requests that were longer than the model can take, and lost their beginning.
        arithmetic: of the evaluator; None where that does not matter.
    """

    answers: tuple[Any, ...]
    seconds: float
    num_truncated: int = 0
    arithmetic: Arithmetic | None = field(default=None, repr=False)


ClockedResult = SpeedComparison | BlockTimes
DenseResult = ChannelOrder | StatisticsResult | LayerSimilarity
Result = ScoreResult | DenseResult | Continuations | AnswerResult | ClockedResult


@dataclass(frozen=True, slots=True)
class EvaluatorInfo:
    """Where an evaluator runs and what it sees.

    Args:
        arithmetic: what it computes with.
    """

    pid: int
    node: str
    visible_gpus: tuple[str, ...]
    arithmetic: Arithmetic
    node_id: str = ""

    def __str__(self) -> str:
        gpus = f", GPU {','.join(self.visible_gpus)}" if self.visible_gpus else ""
        return f"{self.node}, pid {self.pid}, {self.arithmetic.device}{gpus}"
