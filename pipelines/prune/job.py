"""What a configuration means: the objects of one run, made and checked before anything expensive
starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PretrainedConfig

from pipelines.config.prune import PruneConfig
from pipelines.engines import problems_of_engine
from pipelines.evaluators import find_placement, open_pool
from pipelines.prune.compensated_order import compensated_order, forget_parts
from pipelines.runs.files import BLOCK_INFLUENCE, CHANNEL_ORDER, read_with
from pipelines.runs.folder import RunFolder
from pipelines.runs.targets import search_settings
from pipelines.runs.timing import Timing
from pruning.calibration.build import make_calibration
from pruning.calibration.token_sets import SET_NAMES, Calibration, SetName
from pruning.costs.accounting import Accounting
from pruning.costs.latency import TRANSFORMERS
from pruning.errors import InputError
from pruning.importance.block_influence import BlockInfluence, LayerSimilarity
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.models.display_name import display_name
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.models.gguf_source import gguf_source
from pruning.search.settings import SearchSettings
from pruning.search.strategies import strategy_of
from pruning.search.strategy import Strategy
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.memory import layers_per_task, shape_evaluator_bytes
from workers.pool.protocol import Pool
from workers.tasks import (
    EvaluatorSpec,
    InfluenceTask,
    OrderTask,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PruneJob:
    """One search, ready to run.

    Args:
        evaluator_bytes: memory that an evaluator needs; `placement` is for that much.
        set_keys: names of its calibration sets on the evaluators, which may hold those of other
            searches too.
    """

    config: PruneConfig
    checkpoint: Checkpoint
    fingerprint: str
    accounting: Accounting
    settings: SearchSettings
    timing: Timing | None
    calibration: Calibration
    dtype: str
    machine: LocalMachine
    evaluator_bytes: int
    placement: Placement | None
    set_keys: Mapping[SetName, str] = field(
        default_factory=lambda: {name: name for name in SET_NAMES}
    )

    @property
    def strategy(self) -> Strategy:
        return strategy_of(self.settings)

    def identity(self) -> dict[str, Any]:
        """What decides the trajectory, with everything resolved."""
        mixture = self.config.calibration.mixture()
        return self.strategy.identity() | {
            "calibration.batch_size": self.config.calibration.batch_size,
            "model": self.fingerprint,
            "model.dtype": self.dtype,
            "calibration.block": self.calibration.block.fingerprint,
            "calibration.width": self.calibration.width.fingerprint,
            **({"latency": self.timing.fingerprint} if self.timing else {}),
            **({"memory": asdict(load)} if (load := self.config.load) else {}),
            **({"calibration.sources": str(mixture)} if mixture.sources else {}),
        }

    def spec(self) -> EvaluatorSpec:
        """What its evaluators are made from."""
        token_sets = {
            self.set_keys[name]: tokens.input_ids
            for name, tokens in self.calibration.sets().items()
        }
        return EvaluatorSpec(
            self.checkpoint,
            self.dtype,
            token_sets,
            self.config.calibration.batch_size,
            self.config.cluster.num_cpus_per_evaluator,
        )

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """Evaluators, for the time of the context."""
        cluster, run = self.config.cluster, self.config.output_dir
        with open_pool(cluster, self.machine, self.placement, self.spec(), run=run) as pool:
            yield pool

    @property
    def _num_evaluators(self) -> int:
        return (self.placement.num_evaluators if self.placement else None) or 1

    @property
    def order_key(self) -> tuple[str, ...]:
        """What its channel order depends on, evaluators aside: jobs with the same share it."""
        settings = self.settings
        return (
            self.fingerprint,
            self.dtype,
            str(self.config.calibration.batch_size),
            self.calibration.width.fingerprint,
            settings.importance,
            settings.compensation,
        )

    def channel_order(self, pool: Pool, folder: RunFolder) -> ChannelOrder:
        """The order of the run, found once: a resumed run reads it from its folder."""
        path = folder.path / CHANNEL_ORDER
        if path.exists():
            forget_parts(folder)  # of a process that was lost in between
            return read_with(ChannelOrder.load, path, option="output_dir")
        if self.settings.compensation == "none":
            task = OrderTask(self.settings.importance, self.set_keys["width"])
            [order] = [result for answers in pool.run([task]) for _, result in answers]
            assert isinstance(order, ChannelOrder)
        else:
            geometry, tokens = self.accounting.geometry, self.calibration.width.input_ids.size
            log.info(
                "statistics of what flows into every projection, over %s tokens", f"{tokens:,}"
            )
            order = compensated_order(
                pool,
                folder,
                num_layers=geometry.num_layers,
                layers_per_task=layers_per_task(geometry, self._num_evaluators),
                set_key=self.set_keys["width"],
            )
        folder.write_with(path.name, order.save)
        forget_parts(folder)
        return order

    def influence(self, pool: Pool, folder: RunFolder, order: ChannelOrder) -> BlockInfluence:
        """That of the dense model, found once like the channel order, in which the weights are by
        now.
        """
        path = folder.path / BLOCK_INFLUENCE
        if path.exists():
            return read_with(BlockInfluence.load, path, option="output_dir")
        num_batches = len(self.calibration.block.batches(self.config.calibration.batch_size))
        found: dict[int, LayerSimilarity] = {}
        for answers in pool.run(
            [
                InfluenceTask(batch, order.fingerprint, self.set_keys["block"])
                for batch in range(num_batches)
            ]
        ):
            found |= {
                task.batch: result
                for task, result in answers
                if isinstance(task, InfluenceTask) and isinstance(result, LayerSimilarity)
            }
        influence = BlockInfluence.of([found[batch] for batch in range(num_batches)])
        folder.write_with(path.name, influence.save)
        return influence


def make_job(config: PruneConfig, others: Sequence[PruneJob] = ()) -> PruneJob:
    """Finds the model, builds the calibration sets, and checks everything against everything.

    Args:
        others: jobs made before. What one with the same settings has read already, the calibration
            text and every byte of the weights, is not read again.

    Raises:
        InputError: with all problems that could be found together.
    """
    model = config.model
    same_model = [other for other in others if other.config.model == model]
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    model_config = checkpoint.config()
    checkpoint.weight_files()
    accounting = Accounting(model_config, trust_remote_code=model.trust_remote_code)
    if not same_model:
        checkpoint.check_weights()
    timing = Timing.read(config.latency) if config.latency else None
    settings = search_settings(config, accounting, timing)
    strategy = strategy_of(settings)
    problems = strategy.problems(accounting) + _context_problems(config, model_config)
    problems += _engine_problems(config, checkpoint, timing)
    machine = LocalMachine.detect(num_gpus=config.cluster.num_gpus)
    dtype = resolve_dtype(
        model.dtype, on_gpu=machine.gpus_per_evaluator(config.cluster.num_gpus_per_evaluator) > 0
    )
    needed = shape_evaluator_bytes(
        accounting,
        dtype,
        batch_tokens=config.calibration.batch_size * config.calibration.sequence_length,
        hidden_size=model_config.hidden_size,
        compensated=settings.compensation != "none",
        by_divergence=strategy.by_divergence,
    )
    placement = _placement(config, machine, needed, problems)
    fingerprint = same_model[0].fingerprint if same_model else checkpoint.fingerprint()
    if timing is not None:
        timing.require_model(fingerprint, f"this search prunes {display_name(model.path)}")
        timing.require_sizes(strategy.first_shapes(accounting), "this search")
    return PruneJob(
        config,
        checkpoint,
        fingerprint,
        accounting,
        settings,
        timing,
        _calibration(config, checkpoint, same_model),
        dtype,
        machine,
        needed,
        placement,
    )


def _placement(
    config: PruneConfig, machine: LocalMachine, needed: int, problems: Sequence[str]
) -> Placement | None:
    """See `find_placement`; its problem is told with the others.

    Raises:
        InputError: there are any.
    """
    placement, found = None, list(problems)
    try:
        placement = find_placement(config.cluster, machine, needed)
    except InputError as error:
        found.append(str(error))
    if found:
        raise InputError("\n".join(found))
    return placement


def _engine_problems(
    config: PruneConfig, checkpoint: Checkpoint, timing: Timing | None
) -> list[str]:
    """Why the pruned model cannot be measured in the engine of the table, where that is asked
    for.
    """
    if timing is None or timing.table.engine == TRANSFORMERS or not config.measure_latency:
        return []
    return problems_of_engine(
        timing.table.engine,
        checkpoint,
        gguf_source(config.model.path),
        option="measure_latency",
        batch_size=("latency", timing.table.settings.batch_size),
    )


def _context_problems(config: PruneConfig, model_config: PretrainedConfig) -> list[str]:
    context = getattr(model_config, "max_position_embeddings", None)
    if not context or config.calibration.sequence_length <= context:
        return []
    return [
        f"calibration.sequence_length: {config.calibration.sequence_length}, above this "
        f"model's context of {context} tokens"
    ]


def _calibration(
    config: PruneConfig, checkpoint: Checkpoint, same_model: Sequence[PruneJob]
) -> Calibration:
    """The calibration sets; those of a job with the same model and settings are taken over."""
    for other in same_model:
        if other.config.calibration == config.calibration:
            return other.calibration
    vocab_size = checkpoint.config().vocab_size
    return make_calibration(config.calibration.spec(), checkpoint.tokenizer, vocab_size=vocab_size)
