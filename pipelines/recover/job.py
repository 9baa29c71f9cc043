"""What a recovery is of, found and checked before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config.recover import RECOVERY_OPTIONS, RecoverConfig
from pipelines.evaluators import find_placement, local_session
from pipelines.runs.saved_run import PastRun, read_run
from pruning.calibration.build import make_calibration
from pruning.calibration.token_sets import TokenSet
from pruning.errors import InputError
from pruning.export import transformers
from pruning.recovery.journal import StoppedBy
from pruning.recovery.settings import RecoverySettings
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.memory import training_bytes
from workers.training.trainer import TrainingSpec, Watch, train


@dataclass(frozen=True, slots=True, eq=False)
class RecoverJob:
    """One recovery, checked and ready to run."""

    config: RecoverConfig
    run: PastRun
    settings: RecoverySettings
    text: TokenSet
    heldout: TokenSet
    machine: LocalMachine
    placement: Placement | None

    @classmethod
    def of(cls, config: RecoverConfig) -> RecoverJob:
        """Finds the search, its model and the text.

        Raises:
            InputError: with all problems that could be found together.
        """
        assert config.run is not None
        run = read_run(config.run)
        if run.recovery is not None:
            raise InputError(
                f"run: {run.folder} is a recovery already; give the search that it is of, and "
                "another output_dir"
            )
        if run.summary is None:
            raise InputError(
                f"run: the search in {run.folder} has not ended; go on with it, with multipruner "
                "prune resume=true, and recover then"
            )
        settings = config.recovery.settings()
        machine = LocalMachine.detect(num_gpus=config.cluster.num_gpus)
        needed = _needed_bytes(config, run, settings)
        problems = _problems(config, run, settings)
        if config.cluster.kind != "ray" and not machine.gpus_per_evaluator(
            config.cluster.num_gpus_per_evaluator
        ):
            problems += _memory_problems(config, settings, needed, machine)
        placement = None
        try:
            placement = find_placement(config.cluster, machine, needed)
        except InputError as error:
            problems.append(str(error))
        try:
            text, heldout = _text(config, run)
        except InputError as error:
            problems.append(str(error))
        if problems:
            raise InputError("\n".join(problems))
        one = None if placement is None else replace(placement, num_evaluators=1)
        return cls(config, run, settings, text, heldout, machine, one)

    def identity(self) -> dict[str, Any]:
        """What decides every update, with everything resolved."""
        return {
            "kind": "recovery",
            "model": self.run.fingerprint,
            "model.dtype": self.run.dtype,
            "order": self.run.order.fingerprint,
            "shape": self.run.shape.text,
            "text": self.text.fingerprint,
            "heldout": self.heldout.fingerprint,
            "cluster.num_cpus_per_evaluator": self.config.cluster.num_cpus_per_evaluator,
            "on a GPU": self._num_gpus > 0,
            **{f"recovery.{name}": value for name, value in asdict(self.settings).items()},
        }

    def train(self, folder: Path, watch: Watch) -> StoppedBy:
        """Trains in this process, or in one that Ray starts.

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
            self.run.checkpoint,
            self.run.dtype,
            self.run.shape.text,
            self.run.order,
            self.settings,
            self.text.input_ids,
            self.heldout.input_ids,
            self.config.cluster.num_cpus_per_evaluator,
        )


def _problems(config: RecoverConfig, run: PastRun, settings: RecoverySettings) -> list[str]:
    """Of the options and the shape together."""
    accounting, model_config = run.accounting, run.checkpoint.config()
    found = transformers.problems(model_config, accounting.family, accounting.geometry, run.shape)
    context = getattr(model_config, "max_position_embeddings", None)
    length = config.recovery.sequence_length
    if context and length > context:
        found.append(
            f"recovery.sequence_length: {length}, above this model's context of {context} tokens"
        )
    widths = {"hidden size": int(model_config.get_text_config().hidden_size)}
    for number, layer in enumerate(run.shape.layers):
        if layer.kv_heads:
            heads = layer.kv_heads * accounting.geometry.head_dim
            widths[f"attention of layer {number}"] = heads
        if layer.mlp_channels:
            widths[f"MLP of layer {number}"] = layer.mlp_channels
    narrowest = min(widths, key=lambda name: widths[name])
    if settings.rank > widths[narrowest]:
        found.append(
            f"recovery.rank: {settings.rank}, above the narrowest matrix that is left "
            f"({narrowest}: {widths[narrowest]}); give at most {widths[narrowest]}"
        )
    if config.recovery.sequences < settings.batch_size:
        found.append(
            f"recovery.num_sequences: {config.recovery.sequences}, below the "
            f"{settings.batch_size} of recovery.batch_size; give more"
        )
    return found


def _needed_bytes(config: RecoverConfig, run: PastRun, settings: RecoverySettings) -> int:
    text_config = run.checkpoint.config().get_text_config()
    return training_bytes(
        run.accounting,
        run.shape,
        run.dtype,
        batch_tokens=settings.micro_batch_size * config.recovery.sequence_length,
        hidden_size=int(text_config.hidden_size),
        vocab_size=int(text_config.vocab_size),
        rank=settings.rank,
    )


def _memory_problems(
    config: RecoverConfig, settings: RecoverySettings, needed: int, machine: LocalMachine
) -> list[str]:
    """Of a training on CPUs; what a GPU has left is known when it is used."""
    if needed <= machine.free_bytes:
        return []
    return [
        f"recovery.micro_batch_size: {settings.micro_batch_size} sequences of "
        f"{config.recovery.sequence_length} tokens take about {needed / 1e9:.1f} GB of memory with "
        f"this model, {machine.free_bytes / 1e9:.1f} GB are free; give a smaller one, or a smaller "
        "recovery.sequence_length"
    ]


def _text(config: RecoverConfig, run: PastRun) -> tuple[TokenSet, TokenSet]:
    """The sequences that are trained on, and those that are not.

    Raises:
        InputError: there is too little text, or it is not for this model.
    """
    checkpoint = run.checkpoint
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
