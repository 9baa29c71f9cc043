"""Other engines than transformers: what they need, and how fast shapes of a model are in them, as
`multipruner export` writes those.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning.costs.accounting import Accounting
from pruning.costs.engine_speed import EngineRuns
from pruning.costs.llama_cpp_speed import llama_cpp_runs
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import vllm_python, vllm_runs
from pruning.errors import InputError
from pruning.export import decilm, gguf, transformers
from pruning.export.source import ExportSource
from pruning.export.verify_gguf import KNOWN, PACKAGE, has_llama_cpp
from pruning.models.checkpoint import Checkpoint
from pruning.models.dtypes import NUM_BYTES
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape

log = logging.getLogger(__name__)

_SCRATCH = ".engine-"


def problems_of_engine(
    engine: str,
    checkpoint: Checkpoint,
    tokenizer_gguf: Path | None,
    *,
    option: str,
    batch_size: tuple[str, int],
) -> list[str]:
    """Why shapes of a model cannot be measured in an engine.

    Args:
        option: that asks for it.
        batch_size: the option and its value.
    """
    config, accounting = checkpoint.config(), Accounting(checkpoint.config())
    model = (config, accounting.family, accounting.geometry, accounting.geometry.dense)
    found, unfit = [], list[str]()
    if engine == "llama.cpp":
        if not has_llama_cpp():
            found.append(
                f"{option}: llama.cpp is not installed here: pip install '{PACKAGE}=={KNOWN}*'"
            )
        name, sequences = batch_size
        if sequences != 1:
            found.append(
                f"{name}: {sequences}; llama.cpp is measured with one sequence at a time: give 1"
            )
        unfit += [f"gguf: {problem}" for problem in gguf.problems(*model)]
        of_tokenizer = gguf.tokenizer_problems(checkpoint.folder, config, tokenizer_gguf)
        unfit += [f"gguf: {problem}" for problem in of_tokenizer]
    else:
        try:
            vllm_python()
        except InputError as error:
            found.append(f"{option}: {error}")
        unfit += [f"decilm: {problem}" for problem in decilm.problems(*model)]
    return found + [f"{option}: as with export format={problem}" for problem in unfit]


def remove_leftovers(folder: Path) -> None:
    """Of a process that was killed while it measured."""
    for left in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A dense model whose shapes an engine runs.

    Args:
        tokenizer_gguf: the GGUF that it came from; None: it came from elsewhere.
        dtype: of the weights that are written, and that the engine computes in.
        num_threads: of the engine's CPU.
    """

    checkpoint: Checkpoint
    tokenizer_gguf: Path | None
    dtype: str
    num_threads: int


def runs_in_engine(
    engine: str,
    model: EngineModel,
    shapes: Mapping[str, ModelShape],
    settings: SpeedSettings,
    *,
    folder: Path,
    as_decilm: Collection[str] = (),
) -> EngineRuns:
    """Writes shapes of a model as the engine opens them into `folder` for the time of the
    measurement, and measures them in turns on this machine.

    Weights are neither sorted nor compensated: other values in the same sizes take the same time.

    Args:
        shapes: by name; a name is a folder's.
        as_decilm: names of shapes that vLLM gets as DeciLM although the family can hold them.

    Raises:
        InputError: the engine is not there, or the tokenizer cannot be told to it.
        RuntimeError: it cannot open or run a model; the message ends with what it said.
    """
    checkpoint, dtype = model.checkpoint, model.dtype
    config = checkpoint.config()
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        log.info("measuring speed in %s: writing %d models", engine, len(shapes))
        dense = LoadedModel.of(checkpoint.load(dtype=dtype))
        written = {}
        for name, shape in shapes.items():
            target = Path(scratch) / name
            target.mkdir()
            source = ExportSource(dense, shape, checkpoint.folder, getattr(torch, dtype))
            written[name] = _write(engine, target, source, model, free=name in as_decilm)
        del dense, source
        log.info("measuring speed in %s: %d rounds", engine, settings.rounds)
        asked = {"vocab_size": config.vocab_size, "num_threads": model.num_threads}
        if engine == "vllm":
            return vllm_runs(
                written, settings, dtype=dtype, cache_bytes=_cache_bytes(model, settings), **asked
            )
        return llama_cpp_runs(written, settings, **asked)


def _write(
    engine: str, target: Path, source: ExportSource, model: EngineModel, *, free: bool
) -> Path:
    """What the engine opens: for vLLM a checkpoint of the family itself, where that can hold the
    shape and it need not be one of free sizes, else DeciLM.
    """
    if engine == "llama.cpp":
        gguf.write(target, source, tokenizer_gguf=model.tokenizer_gguf)
        return target / gguf.file_name(source.dtype)
    write = transformers.write if transformers.is_plain(source) and not free else decilm.write
    write(target, source)
    return target


def _cache_bytes(model: EngineModel, settings: SpeedSettings) -> int:
    """Keys and values of a whole batch of the dense model, or as many as are known."""
    accounting = Accounting(model.checkpoint.config())
    of_token = accounting.kv_cache_bytes_per_token(
        accounting.dense, bytes_per_value=NUM_BYTES[model.dtype]
    )
    return (of_token or 0) * settings.batch_size * settings.context_tokens


def room_problems(
    engine: str,
    accounting: Accounting,
    shapes: Collection[ModelShape],
    *,
    dtype: str,
    free_bytes: int,
    on_gpu: bool,
    folder: Path,
) -> list[str]:
    """Whether the models of a measurement fit on the disk and into memory together: a GGUF that
    does not stay in memory would be timed as it is read.

    Args:
        free_bytes: of memory.
        on_gpu: vLLM takes a GPU's memory, and says itself what does not fit there.
        folder: need not be there yet.
    """
    needed = sum(accounting.num_stored_parameters(each) for each in shapes) * NUM_BYTES[dtype]
    there = next(each for each in (folder, *folder.parents) if each.exists())
    places = {"on the disk of output_dir": shutil.disk_usage(there).free}
    if engine != "vllm" or not on_gpu:
        places["of memory"] = free_bytes
    return [
        f"engine: {len(shapes)} models of {needed / 1e9:,.1f} GB are measured together, and "
        f"{free / 1e9:,.1f} GB {where} are free; give fewer widths, or a smaller model.dtype"
        for where, free in places.items()
        if needed > free
    ]
