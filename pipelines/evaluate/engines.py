"""How fast the models are in other engines than transformers, as `multipruner export` writes
them.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.groups import EvaluationConfig
from pipelines.evaluate.models import ModelsUnderTest, cost_roles
from pruning.costs.accounting import Accounting
from pruning.costs.engine_speed import EngineComparison
from pruning.costs.llama_cpp_speed import llama_cpp_speed
from pruning.costs.measured import Role
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import vllm_python, vllm_speed
from pruning.errors import InputError, first_line
from pruning.export import decilm, gguf, transformers
from pruning.export.source import ExportSource
from pruning.export.verify_gguf import KNOWN, PACKAGE, has_llama_cpp
from pruning.models.checkpoint import Checkpoint
from pruning.models.gguf_source import gguf_source
from pruning.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

_OPTION = "evaluation.cost_engines"
_SCRATCH = ".engine-"


def problems_of_engines(
    evaluation: EvaluationConfig, checkpoint: Checkpoint, tokenizer_gguf: Path | None
) -> list[str]:
    """Why the speed of a dense model and its shapes cannot be measured in the engines that are
    asked for.
    """
    if not evaluation.cost_engines:
        return []
    config, accounting = checkpoint.config(), Accounting(checkpoint.config())
    model = (config, accounting.family, accounting.geometry, accounting.geometry.dense)
    found, unfit = [], list[str]()
    if "llama.cpp" in evaluation.cost_engines:
        if not has_llama_cpp():
            found.append(
                f"{_OPTION}: llama.cpp is not installed here: pip install '{PACKAGE}=={KNOWN}*'"
            )
        if evaluation.cost_batch_size != 1:
            found.append(
                f"evaluation.cost_batch_size: {evaluation.cost_batch_size}; llama.cpp is measured "
                "with one sequence at a time: give 1"
            )
        unfit += [f"gguf: {problem}" for problem in gguf.problems(*model)]
        of_tokenizer = gguf.tokenizer_problems(checkpoint.folder, config, tokenizer_gguf)
        unfit += [f"gguf: {problem}" for problem in of_tokenizer]
    if "vllm" in evaluation.cost_engines:
        try:
            vllm_python()
        except InputError as error:
            found.append(f"{_OPTION}: {error}")
        unfit += [f"decilm: {problem}" for problem in decilm.problems(*model)]
    return found + [f"{_OPTION}: as with export format={problem}" for problem in unfit]


def speed_in_engines(
    config: EvaluateConfig, models: ModelsUnderTest, folder: Path
) -> dict[str, Any]:
    """Writes the models as each engine opens them into `folder` for the time of the measurement, in
    the type that the dense weights are stored in, and measures them in turns on this machine.

    Returns:
        By engine, what evaluation.json says. What goes wrong is said there: hours of answers may
        be behind it.
    """
    found: dict[str, Any] = {}
    for left in folder.glob(f"{_SCRATCH}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    for engine in config.evaluation.cost_engines:
        try:
            found[engine] = _speed_in(engine, config, models, folder)
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("the speed in %s is not known: %s", engine, first_line(error))
            found[engine] = {"problem": first_line(error)}
    return found


def _speed_in(
    engine: str, config: EvaluateConfig, models: ModelsUnderTest, folder: Path
) -> dict[str, Any]:
    evaluation = config.evaluation
    settings = SpeedSettings(
        evaluation.cost_batch_size,
        evaluation.cost_prompt_tokens,
        evaluation.cost_new_tokens,
        evaluation.cost_rounds,
    )
    checkpoint = models.main.checkpoint
    stored = checkpoint.stored_dtype()
    vocab_size = checkpoint.config().vocab_size
    num_threads = config.cluster.num_cpus_per_evaluator
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        log.info("measuring speed in %s: writing the models", engine)
        sources = _sources(models, checkpoint, stored)
        if engine == "vllm":
            written = _write_folders(sources, Path(scratch))
        else:
            written = _write_ggufs(sources, tokenizer_of(config, models), Path(scratch))
        del sources
        log.info("measuring speed in %s: %d rounds", engine, settings.rounds)
        compared: EngineComparison = (
            vllm_speed(
                written, settings, vocab_size=vocab_size, num_threads=num_threads, dtype=stored
            )
            if engine == "vllm"
            else llama_cpp_speed(written, settings, vocab_size=vocab_size, num_threads=num_threads)
        )
    return compared.to_json() | {"dtype": stored}


def _sources(
    models: ModelsUnderTest, checkpoint: Checkpoint, stored: str
) -> dict[Role, ExportSource]:
    """What is written of each shape. Weights as they are stored, neither sorted nor compensated:
    other values in the same sizes take the same time.
    """
    dtype: torch.dtype = getattr(torch, stored)
    dense = LoadedModel.of(checkpoint.load(dtype=stored))
    return {
        role: ExportSource(dense, model.shape or dense.geometry.dense, checkpoint.folder, dtype)
        for role, model in cost_roles(models.evaluated).items()
    }


def _write_ggufs(
    sources: Mapping[Role, ExportSource], tokenizer: Path | None, folder: Path
) -> dict[Role, Path]:
    files = {}
    for role, source in sources.items():
        target = folder / role
        target.mkdir()
        gguf.write(target, source, tokenizer_gguf=tokenizer)
        files[role] = target / gguf.file_name(source.dtype)
    return files


def _write_folders(sources: Mapping[Role, ExportSource], folder: Path) -> dict[Role, Path]:
    """Of the family itself, where that can hold the shape, else DeciLM: what vLLM serves."""
    folders = {}
    for role, source in sources.items():
        folders[role] = target = folder / role
        target.mkdir()
        write = transformers.write if transformers.is_plain(source) else decilm.write
        write(target, source)
    return folders


def tokenizer_of(config: EvaluateConfig, models: ModelsUnderTest) -> Path | None:
    """The GGUF that the dense model came from."""
    return gguf_source(config.model.path if models.run is None else models.run.config.model.path)
