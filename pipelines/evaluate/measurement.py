"""One evaluation from start to finish: each model's answers from the store and the evaluators, then
the report, the table and MLflow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from pipelines.cli.console import WorkProgress, duration
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.groups import EvaluationConfig
from pipelines.evaluate.answers import CachedRequests, progress_size
from pipelines.evaluate.benchmarks import Benchmarks, average, open_benchmarks
from pipelines.evaluate.engines import problems_of_engines, tokenizer_of
from pipelines.evaluate.models import (
    WINDOW_TOKENS,
    EvaluatedModel,
    ModelsUnderTest,
    cost_roles,
    find_models,
    window_length,
)
from pipelines.evaluators import find_placement, local_session, open_pool
from pipelines.store.scores import AnswerContext, ScoreStore
from pruning.costs.measured import SpeedComparison
from pruning.costs.speed import SpeedSettings
from pruning.errors import InputError
from pruning.models.geometry import Geometry
from pruning.scoring.arithmetic import Arithmetic
from pruning.scoring.score import exact_sum, perplexity
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.benchmarks import BenchmarkEvaluator
from workers.evaluators.costs import SpeedEvaluator
from workers.evaluators.memory import compensated_bytes, evaluator_bytes
from workers.pool.protocol import Pool
from workers.tasks import RequestTask, SpeedSpec, SpeedTask

log = logging.getLogger(__name__)

_REQUEST_TOKENS = 512
"""Of a long request: memory is planned for so many."""
_GPU_BATCH_SIZE = 16
_LINE_EVERY_S = 60.0
"""How often the log says how long it will take."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationJob:
    """One evaluation, checked and ready to run."""

    config: EvaluateConfig
    models: ModelsUnderTest
    benchmarks: Benchmarks
    batch_size: int
    machine: LocalMachine
    placement: Placement | None

    @contextmanager
    def pool(self, model: EvaluatedModel) -> Iterator[Pool]:
        """Evaluators that hold this model, for the time of the context."""
        cluster = self.config.cluster
        spec = model.spec(
            batch_size=self.batch_size,
            max_length=self.config.evaluation.max_length,
            num_threads=cluster.num_cpus_per_evaluator,
        )
        run = self.config.output_dir or self.config.run
        with open_pool(
            cluster, self.machine, self.placement, spec, BenchmarkEvaluator, run=run
        ) as pool:
            yield pool

    def contexts(
        self, model: EvaluatedModel, arithmetic: Arithmetic
    ) -> tuple[AnswerContext, AnswerContext]:
        """What the answers depend on: those to requests, and those to windows, on which neither
        tokenizer nor harness has a say.
        """
        windows = AnswerContext(
            model=model.fingerprint,
            tokenizer="",
            shape=model.shape.digest if model.shape else "",
            order=model.order.fingerprint if model.order else "",
            dtype=model.dtype,
            batch_size=0,
            arithmetic=arithmetic,
            max_length=None,
            harness="",
        )
        requests = replace(
            windows,
            tokenizer=model.tokenizer_fingerprint(),
            batch_size=self.batch_size,
            max_length=self.config.evaluation.max_length,
            harness=version("lm_eval"),
        )
        return requests, windows


@contextmanager
def open_job(
    config: EvaluateConfig, models: ModelsUnderTest | None = None
) -> Iterator[EvaluationJob]:
    """Finds the models, the tasks and the texts, and checks everything.

    Args:
        models: models that are not to be found, since the caller has them.

    Raises:
        InputError: with all problems that could be found together.
    """
    cluster, evaluation = config.cluster, config.evaluation
    machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
    on_gpu = machine.gpus_per_evaluator(cluster.num_gpus_per_evaluator) > 0
    models = models or find_models(config, on_gpu=on_gpu)
    batch_size = evaluation.batch_size or (_GPU_BATCH_SIZE if on_gpu else 1)
    problems = problems_of_cost(evaluation, models.evaluated)
    problems += problems_of_engines(
        evaluation, models.main.checkpoint, tokenizer_of(config, models)
    )
    length, placement = WINDOW_TOKENS, None
    try:
        length = window_length(evaluation.sequence_length, models.evaluated)
        placement = find_placement(cluster, machine, _needed_bytes(models, batch_size, length))
    except InputError as error:
        problems.append(str(error))
    try:
        # A pruned model has its dense one's tokenizer, so that both read the same windows.
        with open_benchmarks(evaluation, models.main.checkpoint.tokenizer, length) as benchmarks:
            if problems:
                raise InputError("\n".join(problems))
            with local_session(machine, placement):
                yield EvaluationJob(config, models, benchmarks, batch_size, machine, placement)
    except InputError as error:
        found = [line for line in problems if line not in str(error)]
        if not found:
            raise
        raise InputError("\n".join([str(error), *found])) from error


def problems_of_cost(evaluation: EvaluationConfig, models: Sequence[EvaluatedModel]) -> list[str]:
    """Why the cost of these models cannot be measured as asked for."""
    prompt, new = evaluation.cost_prompt_tokens, evaluation.cost_new_tokens
    contexts = [model.context_length for model in models if model.context_length]
    # vLLM counts the decoding by one token more
    in_vllm = "vllm" in evaluation.cost_engines
    more = " + 1 in vLLM" if in_vllm else ""
    is_wanted = evaluation.cost or evaluation.cost_engines
    if not is_wanted or not contexts or prompt + new + in_vllm <= min(contexts):
        return []
    return [
        (
            f"evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: {prompt} + {new}{more}, "
            f"above this model's context of {min(contexts)} tokens; lower one"
        )
    ]


def _needed_bytes(models: ModelsUnderTest, batch_size: int, window_tokens: int) -> int:
    """Memory of an evaluator: the larger model, what compensates one, and the logits of a batch of
    requests, which the harness computes whole, twice.
    """
    largest = max(models.evaluated, key=lambda model: model.num_stored_parameters)
    config = largest.checkpoint.config().get_text_config()
    tokens = batch_size * min(_REQUEST_TOKENS, largest.context_length or _REQUEST_TOKENS)
    needed = evaluator_bytes(
        largest.num_stored_parameters,
        largest.dtype,
        max(window_tokens, tokens),
        config.hidden_size,
        2,
    )
    if any(model.order and model.order.compensation for model in models.evaluated):
        needed += compensated_bytes(Geometry.of(config), largest.dtype, config.hidden_size)
    return needed + 2 * 4 * tokens * int(config.vocab_size)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one model.

    Args:
        perplexity: per token, of each text; None where it is not a finite number.
        tasks: see `pipelines.evaluate.harness.evaluate_tasks`.
        device: None where there was nothing to ask an evaluator.
    """

    perplexity: Mapping[str, float | None] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None
    num_evaluators: int = 0
    answers: Mapping[str, int] = field(default_factory=lambda: {"computed": 0, "reused": 0})
    num_truncated: int = 0
    num_other_arithmetic: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "perplexity": dict(self.perplexity),
            "tasks": {name: dict(values) for name, values in self.tasks.items()},
            "average": average(self.tasks),
        }


class ModelMeasurement:
    """Measures the models of a job, one after the other, under one progress bar."""

    def __init__(self, job: EvaluationJob, store: ScoreStore, progress: WorkProgress) -> None:
        self.job, self.store, self.progress = job, store, progress
        self._models_left = len(job.models.evaluated)
        self._request_tokens = 0
        self._next_line = time.monotonic() + _LINE_EVERY_S

    def measure(self, model: EvaluatedModel) -> Measured:
        """All tasks and texts on one model; no evaluator starts where there is neither. Raises what
        `Pool.run` does.
        """
        benchmarks = self.job.benchmarks
        if not benchmarks.tasks and not benchmarks.windows:
            return Measured()
        started = time.monotonic()
        with self.job.pool(model) as pool:
            log.info("%s model: %s, starting evaluators", model.role, model.dtype)
            for _ in pool.wait():
                pass
            requests, windows = self.job.contexts(model, pool.arithmetic)
            cached = CachedRequests(pool, self.store, requests, self._report)
            tasks = self._tasks(cached, model)
            perplexities = {
                name: self._perplexity(cached, windows, name) for name in benchmarks.windows
            }
            num_evaluators, faults = (
                pool.num_evaluators,
                {str(kind): count for kind, count in pool.faults.counts.items()},
            )
        self._models_left -= 1
        if cached.num_truncated:
            log.warning(
                "%d requests are longer than the model can take and lost their beginning",
                cached.num_truncated,
            )
        counts = {"computed": cached.num_computed, "reused": cached.num_reused}
        return Measured(
            perplexities,
            tasks,
            requests.arithmetic.device,
            num_evaluators,
            counts,
            cached.num_truncated,
            cached.num_other_arithmetic,
            faults,
            time.monotonic() - started,
        )

    def cost(self) -> dict[str, Any]:
        """What the models cost, measured side by side on one evaluator that does nothing else."""
        job, evaluation = self.job, self.job.config.evaluation
        models = cost_roles(job.models.evaluated)
        specs = {
            role: model.spec(
                batch_size=1, max_length=None, num_threads=job.config.cluster.num_cpus_per_evaluator
            )
            for role, model in models.items()
        }
        settings = SpeedSettings(
            evaluation.cost_batch_size,
            evaluation.cost_prompt_tokens,
            evaluation.cost_new_tokens,
            evaluation.cost_rounds,
        )
        task = SpeedTask(
            settings, tuple((role, model.disk_bytes) for role, model in models.items())
        )
        placement = None if job.placement is None else replace(job.placement, num_evaluators=1)
        log.info("measuring speed: %d rounds", settings.rounds)
        with open_pool(
            job.config.cluster,
            job.machine,
            placement,
            SpeedSpec(specs.get("dense"), specs.get("pruned")),
            SpeedEvaluator,
            run=job.config.output_dir or job.config.run,
        ) as pool:
            [result] = [result for answers in pool.run([task]) for _, result in answers]
            device = pool.arithmetic.device
        assert isinstance(result, SpeedComparison)
        found = result.to_json()
        return found | {"ratio": found.pop("ratios"), "device": device}

    def _tasks(self, cached: CachedRequests, model: EvaluatedModel) -> dict[str, dict[str, Any]]:
        if not self.job.benchmarks.tasks:
            self._expect(model.role, 0)
            return {}
        from pipelines.evaluate.harness import PoolLM, evaluate_tasks

        evaluation, benchmarks = self.job.config.evaluation, self.job.benchmarks

        def answer(tasks: Sequence[RequestTask]) -> list[list[Any]]:
            self._expect(
                f"{model.role}: {', '.join(dict.fromkeys(task.label for task in tasks))}"[:60],
                sum(map(progress_size, tasks)),
            )
            return cached.answer(tasks)

        return evaluate_tasks(
            PoolLM(answer),
            benchmarks.tasks,
            benchmarks.manager,
            num_fewshot=evaluation.num_fewshot,
            limit=evaluation.limit,
        )

    def _perplexity(
        self, cached: CachedRequests, context: AnswerContext, text: str
    ) -> float | None:
        """exp(total NLL / total predicted tokens)."""
        tokens = self.job.benchmarks.windows[text]
        answers = cached.answer(self.job.benchmarks.window_tasks(text), context)
        total = exact_sum([nll for batch in answers for nll in batch])
        return perplexity(total / (tokens.num_sequences * (tokens.sequence_length - 1)))

    def _expect(self, description: str, request_tokens: int) -> None:
        """Every model answers the same, so the first one tells how much there is to do for all."""
        self._request_tokens = max(self._request_tokens, request_tokens)
        each = self._request_tokens + self.job.benchmarks.num_window_tokens
        self.progress.expect(
            description,
            request_tokens + self.job.benchmarks.num_window_tokens + (self._models_left - 1) * each,
        )

    def _report(self, size: int, computed: bool) -> None:
        self.progress.advance(size, scored=computed)
        if self.progress.left_s is not None and time.monotonic() > self._next_line:
            log.info("%s left", duration(self.progress.left_s))
            self._next_line = time.monotonic() + _LINE_EVERY_S
