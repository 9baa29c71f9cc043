"""What a model costs and how fast it is, measured: runs of the dense and the pruned model are
interleaved in one process, so that background load affects both equally.

Shape letters: B sequences of a batch, T tokens of the prompt.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from pruning.costs.counted_flops import flops_of_token
from pruning.errors import InputError, ScoringError
from pruning.models.stored_weights import indexed_files, loaded_files

Role = Literal["dense", "pruned"]
ROLES: tuple[Role, ...] = ("dense", "pruned")


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What is run: random tokens, the same for every model and round.

    Args:
        batch_size: sequences that run together.
        prompt_tokens: tokens of each sequence that the prefill reads in one forward.
        new_tokens: tokens of each sequence that are decoded after it, one forward each.
        rounds: timed repetitions of each model, after one that is not timed. An even number lets
            each model go first equally often.
        seed: draws the tokens.

    Raises:
        InputError: a count is below 1.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"evaluation.cost_{name}: {getattr(self, name)}; expected at least 1"
                )

    @property
    def context_tokens(self) -> int:
        """Tokens of each sequence at the end."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured once a round."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model costs and how fast it is.

    Attributes:
        num_parameters: numbers in its parameters, tied ones once.
        memory_bytes: its parameters and buffers, tied ones once.
        disk_bytes: its weight files; None if the caller did not say.
        kv_cache_bytes_per_token: keys and values of one token of one sequence over all layers, from
            the cache's tensors, without the zero that an exported layer without attention keeps in
            the place of each; as `Accounting.kv_cache_bytes_per_token` counts them.
        kv_cache_bytes: keys and values of the whole batch at the end, where sliding windows have
            dropped what is outside.
        peak_gpu_bytes: its weights and the most that a run allocated on top of them; None without
            CUDA.
        flops_per_token: of one token's forward pass at the mean position of a context of
            `context_tokens`, as `Accounting.flops_per_token` defines it, but counted in the matrix
            products that ran; see `flops_of_token`.
        prefill_tokens_per_s: batch x prompt tokens / seconds.
        decode_tokens_per_s: batch x new tokens / seconds.
    """

    dtype: str
    device: str
    num_parameters: int
    memory_bytes: int
    disk_bytes: int | None
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int
    peak_gpu_bytes: int | None
    flops_per_token: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread


@dataclass(frozen=True, slots=True)
class CostRatios:
    """Pruned / dense, field by field: below 1 is saved, but speeds above 1 are faster.

    Speeds are divided within each round.
    """

    num_parameters: float
    memory_bytes: float
    disk_bytes: float | None
    kv_cache_bytes_per_token: float
    kv_cache_bytes: float
    peak_gpu_bytes: float | None
    flops_per_token: float
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """What the models cost, and the ratios where both were measured."""

    settings: SpeedSettings
    num_threads: int
    dense: ModelCost | None
    pruned: ModelCost | None
    ratios: CostRatios | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def compare_speed(
    models: Mapping[Role, PreTrainedModel],
    settings: SpeedSettings,
    *,
    disk_bytes: Mapping[Role, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedComparison:
    """Measures the models in turns: dense, pruned, pruned, dense and so on, after a run of each
    that is not timed.

    Args:
        models: in evaluation mode, on their devices, all in memory together, and loaded the same
            way: weights that are views of another model's have other strides. Any causal language
            model of transformers that returns its KV cache; one of the two roles alone is measured
            without ratios.
        disk_bytes: see `weight_file_bytes`.
        clock: seconds, read before the prefill, between it and the decoding, and after that, in the
            runs that are not timed too.

    Raises:
        InputError: prompt and new tokens do not fit into the context of a model.
        ScoringError: a model returns no KV cache.
    """
    if not models or not set(models) <= set(ROLES):
        raise ValueError(f"models: {sorted(models)}; expected dense and pruned, or one of them")
    for role, model in models.items():
        _require_context(role, model, settings)
    roles = [role for role in ROLES if role in models]
    vocabulary = min(len(_embedding(model)) for model in models.values())
    generator = torch.Generator().manual_seed(settings.seed)
    prompt_BT = torch.randint(
        vocabulary, (settings.batch_size, settings.prompt_tokens), generator=generator
    )
    run = partial(_run, prompt_BT=prompt_BT, new_tokens=settings.new_tokens, clock=clock)
    for role in roles:
        run(models[role])
    runs: dict[Role, list[_Run]] = {role: [] for role in roles}
    for number in range(settings.rounds):
        for role in roles if number % 2 == 0 else reversed(roles):
            runs[role].append(run(models[role]))
    costs = {
        role: _cost(models[role], runs[role], settings, (disk_bytes or {}).get(role))
        for role in roles
    }
    ratios = (
        _ratios(costs["dense"], costs["pruned"], runs["dense"], runs["pruned"])
        if len(roles) == len(ROLES)
        else None
    )
    return SpeedComparison(
        settings, torch.get_num_threads(), costs.get("dense"), costs.get("pruned"), ratios
    )


def weight_file_bytes(path: Path) -> int:
    """Bytes of the weights on disk: a GGUF file, or of a folder the safetensors files that
    transformers loads; where it has none, its GGUF files.

    Raises:
        InputError: there are none.
    """
    if path.is_file():
        return path.stat().st_size
    has_safetensors = any(path.glob("*.safetensors")) or bool(indexed_files(path))
    files = loaded_files(path) if has_safetensors else sorted(path.glob("*.gguf"))
    sizes = [file.stat().st_size for file in files if file.is_file()]
    if not sizes:
        raise InputError(f"no weights (*.safetensors, *.gguf) in {path}")
    return sum(sizes)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One prefill and the decoding after it.

    `tokens` is int64 [B, 1 + new tokens]: the first is the prefill's.
    """

    tokens: torch.Tensor
    prefill_s: float
    decode_s: float
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int
    peak_above_bytes: int


def _run(
    model: PreTrainedModel, prompt_BT: torch.Tensor, new_tokens: int, clock: Callable[[], float]
) -> _Run:
    """Greedy and token by token, with the model's own cache.

    Each argmax stays on its device, so that no step waits for the one before.
    """
    gpus = _gpus(model)
    input_ids = prompt_BT.to(_embedding(model).device)
    options = {"use_cache": True} | (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
    before = _start_peak(gpus)
    _synchronize(gpus)
    started = clock()
    outputs = model(input_ids=input_ids, **options)
    tokens = [outputs.logits[:, -1:].argmax(dim=-1).to(input_ids.device)]
    _synchronize(gpus)
    prefilled = clock()
    for _ in range(new_tokens):
        outputs = model(input_ids=tokens[-1], past_key_values=outputs.past_key_values, **options)
        tokens.append(outputs.logits[:, -1:].argmax(dim=-1).to(input_ids.device))
    _synchronize(gpus)
    decoded = clock()
    peak_above_bytes = sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) - before
    per_token, total = _cache_bytes(model, outputs.past_key_values, len(prompt_BT))
    return _Run(
        torch.cat(tokens, dim=1).cpu(),
        prefilled - started,
        decoded - prefilled,
        per_token,
        total,
        peak_above_bytes,
    )


def _cost(
    model: PreTrainedModel, runs: list[_Run], settings: SpeedSettings, disk_bytes: int | None
) -> ModelCost:
    gpus = _gpus(model)
    memory_bytes = sum(
        tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors
    )
    return ModelCost(
        dtype=str(model.dtype).removeprefix("torch."),
        device=", ".join(torch.cuda.get_device_name(gpu) for gpu in gpus) or model.device.type,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        kv_cache_bytes_per_token=runs[0].kv_cache_bytes_per_token,
        kv_cache_bytes=runs[0].kv_cache_bytes,
        peak_gpu_bytes=memory_bytes + max(run.peak_above_bytes for run in runs) if gpus else None,
        flops_per_token=flops_of_token(model, position=max(1, settings.context_tokens // 2)),
        prefill_tokens_per_s=Spread.of(
            settings.batch_size * settings.prompt_tokens / run.prefill_s for run in runs
        ),
        decode_tokens_per_s=Spread.of(
            settings.batch_size * settings.new_tokens / run.decode_s for run in runs
        ),
    )


def _ratios(
    dense: ModelCost, pruned: ModelCost, dense_runs: list[_Run], pruned_runs: list[_Run]
) -> CostRatios:
    pairs = list(zip(dense_runs, pruned_runs, strict=True))
    return CostRatios(
        num_parameters=pruned.num_parameters / dense.num_parameters,
        memory_bytes=pruned.memory_bytes / dense.memory_bytes,
        disk_bytes=_ratio(pruned.disk_bytes, dense.disk_bytes),
        kv_cache_bytes_per_token=pruned.kv_cache_bytes_per_token / dense.kv_cache_bytes_per_token,
        kv_cache_bytes=pruned.kv_cache_bytes / dense.kv_cache_bytes,
        peak_gpu_bytes=_ratio(pruned.peak_gpu_bytes, dense.peak_gpu_bytes),
        flops_per_token=pruned.flops_per_token / dense.flops_per_token,
        prefill_tokens_per_s=Spread.of(ours.prefill_s / theirs.prefill_s for ours, theirs in pairs),
        decode_tokens_per_s=Spread.of(ours.decode_s / theirs.decode_s for ours, theirs in pairs),
    )


def _ratio(pruned: int | None, dense: int | None) -> float | None:
    return None if pruned is None or dense is None else pruned / dense


def _cache_bytes(model: PreTrainedModel, cache: Any, batch_size: int) -> tuple[int, int]:
    """Bytes that one token of one sequence takes in the cache, and bytes of all that it holds.

    Keys and values are [B, heads, tokens, head size]. Each layer is divided by the tokens that it
    holds, since sliding windows hold fewer. A layer without attention holds one number for each
    token (see `pruning.export.modeling_pruned.NoMixing`), which is neither key nor value.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise ScoringError(
            f"{type(model).__name__} returns {type(cache).__name__} for past_key_values; "
            "expected a Cache of transformers with layers"
        )
    held = [
        tensor
        for layer in layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None and tensor.numel() and tensor.shape[1] * tensor.shape[3] > 1
    ]
    return sum(tensor.nbytes // (batch_size * tensor.shape[-2]) for tensor in held), sum(
        tensor.nbytes for tensor in held
    )


def _require_context(role: str, model: PreTrainedModel, settings: SpeedSettings) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and settings.context_tokens > limit:
        raise InputError(
            "evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: "
            f"{settings.prompt_tokens} + {settings.new_tokens} = {settings.context_tokens} tokens, "
            f"but the context of the {role} model is {limit} (max_position_embeddings); lower "
            f"one of them so that the sum is at most {limit}"
        )


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    """[vocabulary, hidden size], on the device that token ids go to."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _gpus(model: PreTrainedModel) -> list[torch.device]:
    """The CUDA devices that hold a part of the model."""
    return sorted(
        {parameter.device for parameter in model.parameters() if parameter.is_cuda},
        key=lambda device: device.index,
    )


def _start_peak(gpus: list[torch.device]) -> int:
    """Bytes allocated now, from which on peaks are kept."""
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    return sum(torch.cuda.memory_allocated(gpu) for gpu in gpus)


def _synchronize(gpus: list[torch.device]) -> None:
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
