"""What a recovery is of, found and checked before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config.recover import RECOVERY_OPTIONS, RecoverConfig
from pipelines.evaluators import local_session
from pipelines.recover.placement import (
    find_processes,
    least_processes,
    memory_problems,
    needed_bytes,
)
from pipelines.runs.files import CHANNEL_ORDER
from pipelines.runs.folder import RunFolder
from pipelines.runs.saved_run import PastRun, read_run
from pipelines.runs.shape_file import ShapeFile
from pruning.calibration.build import make_calibration
from pruning.calibration.token_sets import TokenSet
from pruning.costs.accounting import Accounting
from pruning.costs.active_weights import has_experts
from pruning.errors import InputError
from pruning.export import transformers
from pruning.importance.channel_order import STATISTICS
from pruning.models.checkpoint import Checkpoint
from pruning.models.dtypes import resolve_dtype
from pruning.models.find import find_checkpoint
from pruning.recovery.flops import training_flops
from pruning.recovery.journal import StoppedBy
from pruning.recovery.settings import RecoverySettings
from pruning.shape import ModelShape
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.memory import whole_bytes
from workers.training.trainer import TrainingSpec, Watch, train


@dataclass(frozen=True, slots=True, eq=False)
class RecoverJob:
    """One recovery, checked and ready to run.

    Args:
        pruned: what is recovered.
        dtype: of all weights but those that are trained.
        placement: of the processes that train; None: it is this one.
    """

    config: RecoverConfig
    pruned: PastRun | ShapeFile
    dtype: str
    settings: RecoverySettings
    text: TokenSet
    heldout: TokenSet
    machine: LocalMachine
    placement: Placement | None

    @classmethod
    def of(cls, config: RecoverConfig, run: PastRun | None = None) -> RecoverJob:
        """Finds the pruned model and the text.

        Args:
            run: that of `config.run`, where the caller has it.

        Raises:
            InputError: with all problems that could be found together.
        """
        settings = config.recovery.settings()
        machine = LocalMachine.detect(num_gpus=config.cluster.num_gpus)
        on_gpu = machine.gpus_per_evaluator(config.cluster.num_gpus_per_evaluator) > 0
        pruned = run or (_search(config.run) if config.run is not None else _shape_file(config))
        dtype = (
            pruned.dtype
            if isinstance(pruned, PastRun)
            else resolve_dtype(config.model.dtype, on_gpu=on_gpu)
        )
        model = (pruned.checkpoint, pruned.accounting, pruned.shape)
        accounting = pruned.accounting
        problems = transformers.problems(
            pruned.checkpoint.config(), accounting.family, accounting.geometry, pruned.shape
        )
        problems += _problems(config, *model)
        if config.cluster.kind != "ray" and not on_gpu:
            needed = needed_bytes(config, *model, dtype, num_processes=1)
            problems += memory_problems(config, needed, machine)
        placement = None
        try:
            placement = find_processes(config, machine, *model, dtype)
        except InputError as error:
            problems.append(str(error))
        try:
            text, heldout = _text(config, pruned.checkpoint)
        except InputError as error:
            problems.append(str(error))
        if problems:
            raise InputError("\n".join(problems))
        return cls(config, pruned, dtype, settings, text, heldout, machine, placement)

    @property
    def search(self) -> PastRun | None:
        """That is recovered; None: a shape file is."""
        return self.pruned if isinstance(self.pruned, PastRun) else None

    @property
    def source(self) -> dict[str, str]:
        """Where the pruned model is from, as the command names it."""
        if isinstance(self.pruned, PastRun):
            return {"run": str(self.pruned.folder)}
        return {"shape_file": str(self.pruned.path)}

    def write_source(self, folder: RunFolder) -> None:
        """Of a shape file, the order that it counts channels in and the statistics that compensate,
        so that the folder of the recovery needs the model only.
        """
        if self.search is not None:
            return
        order = self.pruned.order
        if order.compensation is not None:
            folder.link(STATISTICS, Path(order.compensation.path))
        folder.write_with(CHANNEL_ORDER, order.save)

    def identity(self) -> dict[str, Any]:
        """What decides every update, with everything resolved."""
        return {
            "kind": "recovery",
            "model": self.pruned.fingerprint,
            "model.dtype": self.dtype,
            "order": self.pruned.order.fingerprint,
            "shape": self.pruned.shape.text,
            "text": self.text.fingerprint,
            "heldout": self.heldout.fingerprint,
            "cluster.num_cpus_per_evaluator": self.config.cluster.num_cpus_per_evaluator,
            "on a GPU": self._num_gpus > 0,
            **{f"recovery.{name}": value for name, value in asdict(self.settings).items()},
        }

    @property
    def num_processes(self) -> int | None:
        """That train; None: as many as the cluster has, up to the parts of an update."""
        return 1 if self.placement is None else self.placement.num_evaluators

    @property
    def needed_bytes(self) -> int:
        """Memory of each process that trains, estimated."""
        pruned = self.pruned
        return needed_bytes(
            self.config,
            pruned.checkpoint,
            pruned.accounting,
            pruned.shape,
            self.dtype,
            num_processes=least_processes(self.config, self.num_processes),
        )

    def flops(self) -> float | None:
        """Of the whole recovery, estimated; None: not known."""
        return training_flops(
            self.pruned.accounting,
            self.pruned.shape,
            self.settings,
            sequence_length=self.text.sequence_length,
            num_heldout_sequences=self.heldout.num_sequences,
        )

    @property
    def tflops_of_search(self) -> float | None:
        """10^12 FLOPs per second that an evaluator of the search did; None: there was no search, or
        it does not say.
        """
        summary = self.search.summary if self.search is not None else None
        rate = ((summary or {}).get("taken") or {}).get("tflops_per_evaluator")
        return None if rate is None else float(rate)

    def train(self, folder: Path, watch: Watch) -> StoppedBy:
        """Trains in this process, or in those that Ray starts.

        Raises:
            InputError, TrainingFailed: see `train` and `train_on_ray`.
        """
        if self.placement is None:
            return train(self.spec(), folder, watch, num_gpus=self._num_gpus)
        from workers.training.ray_training import train_on_ray  # takes seconds to import

        with local_session(self.machine, self.placement):
            return train_on_ray(self.spec(), folder, watch, self.placement)

    @property
    def _num_gpus(self) -> int:
        if self.placement is not None:
            return self.placement.num_gpus
        return self.machine.gpus_per_evaluator(self.config.cluster.num_gpus_per_evaluator)

    def spec(self) -> TrainingSpec:
        """What is trained, and how."""
        return TrainingSpec(
            self.pruned.checkpoint,
            self.dtype,
            self.pruned.shape.text,
            self.pruned.order,
            self.settings,
            self.text.input_ids,
            self.heldout.input_ids,
            self.config.cluster.num_cpus_per_evaluator,
        )


def problems_before_search(
    config: RecoverConfig,
    checkpoint: Checkpoint,
    accounting: Accounting,
    dtype: str,
    ratio: float,
) -> list[str]:
    """What the recovery of a search that has not begun would be refused for, as far as that is
    known before its shape.

    Args:
        ratio: of the parameters that the search is to remove, at least.
    """
    found = config.problems(())
    if found:
        return found
    found = _problems(config, checkpoint, accounting, accounting.dense)
    machine = LocalMachine.detect(num_gpus=config.cluster.num_gpus)
    on_gpu = machine.gpus_per_evaluator(config.cluster.num_gpus_per_evaluator) > 0
    if config.cluster.kind != "ray" and not on_gpu:
        needed = needed_bytes(
            config, checkpoint, accounting, accounting.dense, dtype, num_processes=1
        )
        if config.recovery.rank is None:
            needed -= round(whole_bytes(dtype) * ratio * accounting.num_dense_parameters)
        found += memory_problems(config, needed, machine)
    try:
        _text(config, checkpoint)
    except InputError as error:
        found.append(str(error))
    return found


def _search(folder: str) -> PastRun:
    """A search that has ended.

    Raises:
        InputError: it has not, or is a recovery already.
    """
    run = read_run(folder)
    if run.recovery is not None:
        raise InputError(
            f"run: {run.folder} is a recovery already; give the search that it is of, and another "
            "output_dir"
        )
    if run.summary is None:
        raise InputError(
            f"run: the search in {run.folder} has not ended; go on with it, with multipruner prune "
            "resume=true, and recover then"
        )
    return run


def _shape_file(config: RecoverConfig) -> ShapeFile:
    """As `export` reads one."""
    assert config.shape is not None
    model = config.model
    checkpoint = find_checkpoint(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    checkpoint.check_weights()
    return ShapeFile.read(config.shape, config.importance, model.path, checkpoint)


def _problems(
    config: RecoverConfig, checkpoint: Checkpoint, accounting: Accounting, shape: ModelShape
) -> list[str]:
    """Of the options and the sizes of a shape together."""
    model_config, recovery, found = checkpoint.config(), config.recovery, list[str]()
    context = getattr(model_config, "max_position_embeddings", None)
    length = config.recovery.sequence_length
    if context and length > context:
        found.append(
            f"recovery.sequence_length: {length}, above this model's context of {context} tokens"
        )
    widths = {"hidden size": int(model_config.get_text_config().hidden_size)}
    for number, layer in enumerate(shape.layers):
        if layer.kv_heads:
            heads = layer.kv_heads * accounting.geometry.head_dim
            widths[f"attention of layer {number}"] = heads
        if layer.mlp_channels:
            widths[f"MLP of layer {number}"] = layer.mlp_channels
    narrowest = min(widths, key=lambda name: widths[name])
    if recovery.rank is not None and recovery.rank > widths[narrowest]:
        found.append(
            f"recovery.rank: {recovery.rank}, above the narrowest matrix that is left "
            f"({narrowest}: {widths[narrowest]}); give at most {widths[narrowest]}"
        )
    if recovery.rank is None and has_experts(model_config):
        found.append(
            "recovery.rank: null, which trains whole matrices, and the experts of a mixture are "
            "none of them; give recovery=lora, which leaves them as they are"
        )
    if recovery.sequences < recovery.batch_size:
        found.append(
            f"recovery.num_sequences: {recovery.sequences}, below the "
            f"{recovery.batch_size} of recovery.batch_size; give more"
        )
    return found


def _text(config: RecoverConfig, checkpoint: Checkpoint) -> tuple[TokenSet, TokenSet]:
    """The sequences that are trained on, and those that are not.

    Raises:
        InputError: there is too little text, or it is not for this model.
    """
    try:
        sets = make_calibration(
            config.text(), checkpoint.tokenizer, vocab_size=checkpoint.config().vocab_size
        )
    except InputError as error:
        message = str(error)
        for name, own in RECOVERY_OPTIONS.items():
            message = message.replace(name, own)
        if "sequences" in message and "recovery." not in message:
            message += (
                " (recovery.num_sequences: fewer come again until all updates are taken; "
                "recovery.sequence_length)"
            )
        raise InputError(message) from error
    if sets.heldout is None:
        raise InputError(
            f"calibration: {config.calibration.source} has no text to hold out for a sequence of "
            f"{config.recovery.sequence_length} tokens, and held-out text says when to stop; give "
            "more text, fewer recovery.num_sequences, or a smaller recovery.sequence_length"
        )
    return sets.block, sets.heldout
