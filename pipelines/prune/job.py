"""What a configuration means: the objects of one run, made and checked before anything expensive
starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from pipelines.config.prune import PruneConfig
from pipelines.evaluators import find_placement, gpus_per_evaluator, open_pool
from pipelines.runs.folder import RunFolder
from pruning.calibration.build import make_calibration
from pruning.calibration.spec import CalibrationSpec, Source
from pruning.calibration.token_sets import SET_NAMES, Calibration, SetName
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.importance.block_influence import BlockInfluence, LayerSimilarity
from pruning.importance.channel_order import ChannelOrder
from pruning.importance.criteria import Importance
from pruning.models.checkpoint import Checkpoint
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.search.fixed import FixedSearch, random_path
from pruning.search.greedy import GreedySearch
from pruning.search.stages import Layout, Stage, default_mlp_group, make_stages, stage_problems
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.memory import evaluator_bytes
from workers.pool.protocol import Pool
from workers.tasks import EvaluatorSpec, InfluenceTask, OrderTask


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
    stages: tuple[Stage, ...]
    calibration: Calibration
    dtype: str
    mlp_group_channels: int
    head_group_channels: int
    machine: LocalMachine
    evaluator_bytes: int
    placement: Placement | None
    set_keys: Mapping[SetName, str] = field(
        default_factory=lambda: {name: name for name in SET_NAMES}
    )

    def identity(self) -> dict[str, Any]:
        """What decides the trajectory, with everything resolved."""
        return self.config.identity() | {
            "model": self.fingerprint,
            "model.dtype": self.dtype,
            "calibration.block": self.calibration.block.fingerprint,
            "calibration.width": self.calibration.width.fingerprint,
            "search.mlp_group_channels": self.mlp_group_channels,
            "search.head_group_channels": self.head_group_channels,
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
        with open_pool(self.config.cluster, self.machine, self.placement, self.spec()) as pool:
            yield pool

    def channel_order(self, pool: Pool, folder: RunFolder) -> ChannelOrder:
        """The order of the run, found once: a resumed run reads it from its folder."""
        path = folder.path / "channel_order.safetensors"
        if path.exists():
            return ChannelOrder.load(path)
        task = OrderTask(cast("Importance", self.config.search.importance), self.set_keys["width"])
        [order] = [result for answers in pool.run([task]) for _, result in answers]
        assert isinstance(order, ChannelOrder)
        folder.write_with(path.name, order.save)
        return order

    def block_influence(self, pool: Pool, folder: RunFolder, order: ChannelOrder) -> BlockInfluence:
        """That of the dense model, found once like the channel order, in which the weights are by
        now.
        """
        path = folder.path / "block_influence.json"
        if path.exists():
            return BlockInfluence.load(path)
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

    def new_search(self, influence: BlockInfluence | None = None) -> GreedySearch:
        """A search before its first step.

        Args:
            influence: what `search.strategy=block_influence` goes by; without it, its search has no
                candidates.
        """
        search, layout = self.config.search, cast("Layout", self.config.search.layout)
        if search.strategy == "greedy":
            return GreedySearch(self.accounting, self.stages, layout)
        if search.strategy == "random":
            return FixedSearch(
                self.accounting,
                self.stages,
                random_path(self.accounting.dense, search.drawn_with),
                layout,
            )
        return FixedSearch(
            self.accounting, self.stages, influence.path if influence else (), layout
        )


def make_job(config: PruneConfig, others: Sequence[PruneJob] = ()) -> PruneJob:
    """Finds the model, builds the calibration sets, and checks everything against everything.

    Args:
        others: jobs made before. What one with the same settings has read already, the calibration
            text and every byte of the weights, is not read again.

    Raises:
        InputError: with all problems that could be found together.
    """
    model, cluster = config.model, config.cluster
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    model_config = checkpoint.config()
    checkpoint.weight_files()
    accounting = Accounting(model_config, trust_remote_code=model.trust_remote_code)
    same_model = [other for other in others if other.config.model == model]
    if not same_model:
        checkpoint.check_weights()
    geometry = accounting.geometry
    groups = {
        "mlp_group_channels": _given(config.search.mlp_group_channels, default_mlp_group(geometry)),
        "head_group_channels": _given(
            config.search.head_group_channels, geometry.channels_per_kv_head
        ),
    }
    machine = LocalMachine.detect(num_gpus=cluster.num_gpus)
    layout = cast("Layout", config.search.layout)
    problems = stage_problems(
        accounting, distribution=config.search.distribution, layout=layout, **groups
    )
    context = getattr(model_config, "max_position_embeddings", None)
    if context and config.calibration.sequence_length > context:
        problems.append(
            f"calibration.sequence_length: {config.calibration.sequence_length}, above this "
            f"model's context of {context} tokens"
        )
    dtype = resolve_dtype(model.dtype, on_gpu=gpus_per_evaluator(cluster, machine) > 0)
    batch_tokens = config.calibration.batch_size * config.calibration.sequence_length
    needed = evaluator_bytes(
        accounting.num_dense_parameters,
        dtype,
        batch_tokens,
        model_config.hidden_size,
        geometry.num_layers,
    )
    placement = None
    try:
        placement = find_placement(cluster, machine, needed)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    stages = make_stages(
        accounting,
        target_ratio=config.search.target_ratio,
        distribution=config.search.distribution,
        layout=layout,
        **groups,
    )
    known = next(
        (
            other.calibration
            for other in same_model
            if other.config.calibration == config.calibration
        ),
        None,
    )
    calibration = known or make_calibration(
        _calibration_spec(config), checkpoint.tokenizer, vocab_size=model_config.vocab_size
    )
    fingerprint = same_model[0].fingerprint if same_model else checkpoint.fingerprint()
    return PruneJob(
        config,
        checkpoint,
        fingerprint,
        accounting,
        stages,
        calibration,
        dtype,
        groups["mlp_group_channels"],
        groups["head_group_channels"],
        machine,
        needed,
        placement,
    )


def _calibration_spec(config: PruneConfig) -> CalibrationSpec:
    calibration = config.calibration
    return CalibrationSpec(
        source=cast("Source", calibration.source),
        num_block_samples=calibration.num_block_samples,
        num_width_samples=calibration.num_width_samples,
        num_heldout_samples=calibration.num_heldout_samples,
        sequence_length=calibration.sequence_length,
        seed=calibration.seed,
        path=calibration.path,
        column=calibration.column,
    )


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
