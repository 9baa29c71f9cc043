"""One measurement of latencies: the model found and checked, then timed on one evaluator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config.latency import LatencyConfig
from pipelines.engines import EngineModel, problems_of_engine, room_problems
from pipelines.evaluators import find_placement, open_pool
from pipelines.latency.in_engine import EngineModels, blocks_in_engine, few_levels
from pipelines.runs.files import LATENCY
from pipelines.runs.folder import RunFolder
from pipelines.runs.timing import device_differences
from pruning.costs.accounting import Accounting
from pruning.costs.block_times import Levels, depth_of
from pruning.costs.latency import BlockTimes, LatencyTable, PhaseTimes
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.export import transformers
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.models.gguf_source import gguf_source
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.latency import LatencyEvaluator
from workers.evaluators.memory import latency_evaluator_bytes
from workers.tasks import BenchmarkSpec, LatencyTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LatencyJob:
    """One measurement, checked and ready to run."""

    config: LatencyConfig
    checkpoint: Checkpoint
    fingerprint: str
    accounting: Accounting
    dtype: str
    levels: Levels
    machine: LocalMachine
    placement: Placement | None

    @classmethod
    def of(cls, config: LatencyConfig) -> LatencyJob:
        """Finds the model and a place to measure it.

        Raises:
            InputError: with what is wrong with either.
        """
        model, cluster = config.model, config.cluster
        machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
        on_gpu = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator) > 0
        checkpoint = find_checkpoint(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        accounting = Accounting(checkpoint.config(), trust_remote_code=model.trust_remote_code)
        dtype = (
            checkpoint.stored_dtype()
            if config.in_engine and model.dtype == "auto"
            else resolve_dtype(model.dtype, on_gpu=on_gpu)
        )
        levels = _levels(config, checkpoint, accounting, dtype)
        if config.in_engine:
            machine.require_cores(cluster.num_cpus_per_evaluator)
            _require_room(config, accounting, levels, dtype, machine)
            placement = None
        else:
            needed = latency_evaluator_bytes(
                accounting,
                dtype,
                batch_tokens=config.batch_size * config.prompt_tokens,
                hidden_size=int(checkpoint.config().get_text_config().hidden_size),
                levels=levels,
            )
            placement = find_placement(cluster, machine, needed)
        checkpoint.check_weights()
        return cls(
            config,
            checkpoint,
            checkpoint.fingerprint(),
            accounting,
            dtype,
            levels,
            machine,
            None if placement is None else replace(placement, num_evaluators=1),
        )

    @property
    def settings(self) -> SpeedSettings:
        config = self.config
        return SpeedSettings(
            config.batch_size, config.prompt_tokens, config.new_tokens, config.rounds
        )

    def identity(self) -> dict[str, Any]:
        """Whose table a folder holds; measuring it again is welcome."""
        return {
            "kind": "latency",
            **({"engine": self.config.engine} if self.config.in_engine else {}),
            "model": self.fingerprint,
            "model.dtype": self.dtype,
            **{name: getattr(self.config, name) for name in _LOAD},
            "kv_heads": list(self.levels.kv_heads),
            "mlp_channels": list(self.levels.mlp_channels),
        }

    def measure(self, folder: RunFolder) -> LatencyTable:
        """Times all blocks.

        Raises:
            InputError: the folder has a table of another device, processor, number of threads or
                attention implementation; an engine failed; and what `Pool.run` raises.
        """
        return self._in_engine(folder) if self.config.in_engine else self._on_evaluator(folder)

    def _in_engine(self, folder: RunFolder) -> LatencyTable:
        config = self.config
        num_threads = config.cluster.num_cpus_per_evaluator
        model = EngineModel(
            self.checkpoint, gguf_source(config.model.path), self.dtype, num_threads
        )
        models = EngineModels.of(self.accounting.geometry, self.levels)
        there = (folder.read(LATENCY) or {}).get("arithmetic", {})
        _require_same_device(folder, {**there, "num_threads": num_threads})
        try:
            found = blocks_in_engine(
                config.engine, model, models, self.settings, folder=folder.path
            )
        except RuntimeError as error:
            raise InputError(f"engine: {error}") from error
        _require_same_device(folder, found.arithmetic)
        return self._table(found.arithmetic, found.times, found.whole_models)

    def _table(
        self,
        arithmetic: Mapping[str, Any],
        times: BlockTimes,
        whole_models: Mapping[str, PhaseTimes],
    ) -> LatencyTable:
        return LatencyTable(
            display_name(self.config.model.path),
            self.fingerprint,
            self.dtype,
            arithmetic,
            self.settings,
            self.levels.depth,
            times,
            self.config.engine,
            whole_models,
        )

    def _on_evaluator(self, folder: RunFolder) -> LatencyTable:
        cluster, task = self.config.cluster, LatencyTask(self.settings, self.levels)
        spec = BenchmarkSpec(
            self.checkpoint, self.dtype, num_threads=cluster.num_cpus_per_evaluator
        )
        log.info(
            "timing %d models of up to %d layers, %d rounds after one that is not timed",
            self.levels.num_models,
            self.levels.depth,
            self.config.rounds,
        )
        run = str(folder.path)
        with open_pool(
            cluster, self.machine, self.placement, spec, LatencyEvaluator, run=run
        ) as pool:
            for _ in pool.wait():
                pass
            arithmetic = pool.arithmetic.to_json()
            _require_same_device(folder, arithmetic)
            [times] = [result for answers in pool.run([task]) for _, result in answers]
        assert isinstance(times, BlockTimes)
        return self._table(arithmetic, times, {})


_LOAD = ("batch_size", "prompt_tokens", "new_tokens")
"""Options that the times are of."""


def _require_same_device(folder: RunFolder, arithmetic: Mapping[str, Any]) -> None:
    """Measuring a table again is welcome; one of another device is not replaced."""
    theirs = (folder.read(LATENCY) or {}).get("arithmetic", {})
    differing = device_differences(theirs, arithmetic)
    if differing:
        raise InputError(
            f"output_dir: {folder.path} has the table of another device ({'; '.join(differing)}); "
            "give another output_dir"
        )


def _require_room(
    config: LatencyConfig,
    accounting: Accounting,
    levels: Levels,
    dtype: str,
    machine: LocalMachine,
) -> None:
    """See `room_problems`.

    Raises:
        InputError: there is not enough.
    """
    problems = room_problems(
        config.engine,
        accounting,
        EngineModels.of(accounting.geometry, levels).shapes.values(),
        dtype=dtype,
        free_bytes=machine.free_bytes,
        on_gpu=machine.num_gpus > 0,
        folder=Path(config.output_dir or ".").expanduser().absolute(),
    )
    if problems:
        raise InputError("\n".join(problems))


def _levels(
    config: LatencyConfig, checkpoint: Checkpoint, accounting: Accounting, dtype: str
) -> Levels:
    """The sizes to measure.

    Raises:
        InputError: the model has too few layers, its context is too short, it is pruned by whole
            blocks alone in a way that cannot be written, or is not that wide.
    """
    geometry, family = accounting.geometry, accounting.family
    problems: list[str] = []
    if geometry.num_layers < 2:
        problems.append(
            f"model.path: {config.model.path} has one layer; to tell a layer from the rest takes "
            "two"
        )
    context = getattr(checkpoint.config(), "max_position_embeddings", None)
    more = 1 if config.engine == "vllm" else 0  # it decodes one more than it is timed for
    if context is not None and config.prompt_tokens + config.new_tokens + more > context:
        problems.append(
            f"prompt_tokens, new_tokens: {config.prompt_tokens} + {config.new_tokens}"
            f"{' + 1 in vLLM' * more}, above this model's context of {context} tokens; lower one"
        )
    levels, depth = None, depth_of(accounting, dtype)
    try:
        levels = Levels.of(
            geometry, width_step=config.width_step, widths=config.widths, depth=depth
        )
        if config.engine == "vllm":
            levels = few_levels(levels, all_widths=bool(config.widths or config.width_step))
    except InputError as error:
        problems.append(str(error))
    if not family.prunes_widths:
        if config.widths or config.width_step is not None:
            problems.append(
                f"widths, width_step: architecture {family.model_type!r} is pruned by whole blocks "
                "only; leave them out"
            )
        levels = Levels((0, geometry.kv_heads), (0, geometry.mlp_channels), depth)
        problems += transformers.problems(
            checkpoint.config(), family, geometry, transformers.shapes_to_try(geometry)[-1]
        )
    if config.in_engine:
        problems += problems_of_engine(
            config.engine,
            checkpoint,
            gguf_source(config.model.path),
            option="engine",
            batch_size=("batch_size", config.batch_size),
        )
    if problems or levels is None:
        raise InputError("\n".join(problems))
    return levels
