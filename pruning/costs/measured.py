"""What a model costs and how fast it is, measured: runs of the dense and the pruned model are
interleaved in one process, so that background load affects both equally.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from pruning.costs.counted_flops import flops_of_token
from pruning.costs.speed import SpeedSettings, Spread
from pruning.costs.timed_runs import TimedRun, gpus_of, timed_runs
from pruning.errors import InputError
from pruning.models.stored_weights import indexed_files, loaded_files

Role = Literal["dense", "pruned"]
ROLES: tuple[Role, ...] = ("dense", "pruned")


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
        clock: see `timed_runs`.

    Raises:
        InputError: prompt and new tokens do not fit into the context of a model.
        ScoringError: a model returns no KV cache.
    """
    if not models or not set(models) <= set(ROLES):
        raise ValueError(f"models: {sorted(models)}; expected dense and pruned, or one of them")
    for role, model in models.items():
        _require_context(role, model, settings)
    roles = [role for role in ROLES if role in models]
    runs = timed_runs({role: models[role] for role in roles}, settings, clock=clock)
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


def _cost(
    model: PreTrainedModel, runs: list[TimedRun], settings: SpeedSettings, disk_bytes: int | None
) -> ModelCost:
    gpus = gpus_of(model)
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
        flops_per_token=flops_of_token(model, position=settings.context_tokens // 2),
        prefill_tokens_per_s=Spread.of(
            settings.batch_size * settings.prompt_tokens / run.prefill_s for run in runs
        ),
        decode_tokens_per_s=Spread.of(
            settings.batch_size * settings.new_tokens / run.decode_s for run in runs
        ),
    )


def _ratios(
    dense: ModelCost, pruned: ModelCost, dense_runs: list[TimedRun], pruned_runs: list[TimedRun]
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


def _require_context(role: str, model: PreTrainedModel, settings: SpeedSettings) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and settings.context_tokens > limit:
        raise InputError(
            "evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: "
            f"{settings.prompt_tokens} + {settings.new_tokens} = {settings.context_tokens} tokens, "
            f"but the context of the {role} model is {limit} (max_position_embeddings); lower "
            f"one of them so that the sum is at most {limit}"
        )
