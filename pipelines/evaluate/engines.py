"""How fast the models are in other engines than transformers, as a part of an evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.groups import EvaluationConfig
from pipelines.engines import EngineModel, problems_of_engine, remove_leftovers, runs_in_engine
from pipelines.evaluate.models import ModelsUnderTest, cost_roles
from pruning.costs.accounting import Accounting
from pruning.costs.engine_speed import EngineComparison
from pruning.costs.speed import SpeedSettings
from pruning.errors import first_line
from pruning.models.checkpoint import Checkpoint
from pruning.models.gguf_source import gguf_source

log = logging.getLogger(__name__)


def problems_of_engines(
    evaluation: EvaluationConfig, checkpoint: Checkpoint, tokenizer_gguf: Path | None
) -> list[str]:
    """Why the speed of a dense model and its shapes cannot be measured in the engines that are
    asked for.
    """
    return [
        problem
        for engine in evaluation.cost_engines
        for problem in problems_of_engine(
            engine,
            checkpoint,
            tokenizer_gguf,
            option="evaluation.cost_engines",
            batch_size=("evaluation.cost_batch_size", evaluation.cost_batch_size),
        )
    ]


def speed_in_engines(
    config: EvaluateConfig, models: ModelsUnderTest, folder: Path
) -> dict[str, Any]:
    """Measures the models in each engine in turns on this machine, in the type that the dense
    weights are stored in.

    Returns:
        By engine, what evaluation.json says. What goes wrong is said there: hours of answers may
        be behind it.
    """
    found: dict[str, Any] = {}
    remove_leftovers(folder)
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
    dense = Accounting(checkpoint.config()).dense
    num_threads = config.cluster.num_cpus_per_evaluator
    runs = runs_in_engine(
        engine,
        EngineModel(checkpoint, tokenizer_of(config, models), stored, num_threads),
        {role: model.shape or dense for role, model in cost_roles(models.evaluated).items()},
        settings,
        folder=folder,
    )
    compared = EngineComparison.of(runs.seconds, settings, num_threads=num_threads)
    return compared.to_json() | {"dtype": stored}


def tokenizer_of(config: EvaluateConfig, models: ModelsUnderTest) -> Path | None:
    """The GGUF that the dense model came from."""
    return gguf_source(config.model.path if models.run is None else models.run.config.model.path)
