"""Where a recovery trains: in this process or in others, how many, and the memory of each."""

from __future__ import annotations

from dataclasses import replace

from pipelines.config.recover import RecoverConfig
from pipelines.evaluators import find_placement
from pruning.costs.accounting import Accounting
from pruning.models.checkpoint import Checkpoint
from pruning.scoring.nll import HEAD_CHUNK_TOKENS
from pruning.shape import ModelShape
from workers.cluster.machine import LocalMachine
from workers.cluster.placement import Placement
from workers.evaluators.memory import training_bytes


def find_processes(
    config: RecoverConfig,
    machine: LocalMachine,
    checkpoint: Checkpoint,
    accounting: Accounting,
    shape: ModelShape,
    dtype: str,
) -> Placement | None:
    """As evaluators are placed, but no more than an update has parts, and on CPUs no more than fit
    into memory unless their number is given; None: this process trains.

    Raises:
        InputError: they do not fit.
    """
    cluster, num_parts = config.cluster, config.recovery.settings().num_parts

    def needed(count: int | None) -> int:
        return needed_bytes(config, checkpoint, accounting, shape, dtype, num_processes=count)

    placement = find_placement(cluster, machine, needed(1))
    if placement is None:
        return None
    asked = placement.num_evaluators
    count = 1 if num_parts == 1 else None if asked is None else min(asked, num_parts)
    if count is not None and cluster.num_evaluators is None and not placement.num_gpus:
        while count > 1 and count * needed(count) > machine.free_bytes:
            count -= 1
    memory = needed(least_processes(config, count)) if placement.memory_bytes else 0
    return replace(placement, num_evaluators=count, memory_bytes=memory)


def least_processes(config: RecoverConfig, most: int | None) -> int | None:
    """None: there may be fewer, as a running cluster may have no room for all."""
    return None if config.cluster.kind == "ray" and most != 1 else most


def needed_bytes(
    config: RecoverConfig,
    checkpoint: Checkpoint,
    accounting: Accounting,
    shape: ModelShape,
    dtype: str,
    *,
    num_processes: int | None,
) -> int:
    """Memory of each process that trains, estimated.

    Args:
        num_processes: None: two at the least, as each of fewer keeps the gradients of more parts.
    """
    text_config, settings = checkpoint.config().get_text_config(), config.recovery.settings()
    batch_tokens = settings.micro_batch_size * config.recovery.sequence_length
    return training_bytes(
        accounting,
        shape,
        dtype,
        batch_tokens=batch_tokens,
        hidden_size=int(text_config.hidden_size),
        vocab_size=int(text_config.vocab_size),
        logit_tokens=min(batch_tokens, max(HEAD_CHUNK_TOKENS.values())),
        rank=settings.rank,
        num_kept=0 if num_processes == 1 else -(-settings.num_parts // (num_processes or 2)),
    )


def memory_problems(config: RecoverConfig, needed: int, machine: LocalMachine) -> list[str]:
    """Of a training on CPUs; what a GPU has left is known when it is used."""
    if needed <= machine.free_bytes:
        return []
    adapters = ", or recovery=lora" if config.recovery.rank is None else ""
    return [
        f"recovery.micro_batch_size: {config.recovery.settings().micro_batch_size} sequences of "
        f"{config.recovery.sequence_length} tokens take about {needed / 1e9:.1f} GB of memory with "
        f"this model, {machine.free_bytes / 1e9:.1f} GB are free; give a smaller one, or a smaller "
        f"recovery.sequence_length{adapters}"
    ]
