"""What a recovery computes, before it does."""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.recovery.settings import RecoverySettings
from pruning.shape import ModelShape


def training_flops(
    accounting: Accounting,
    shape: ModelShape,
    settings: RecoverySettings,
    *,
    sequence_length: int,
    num_heldout_sequences: int,
) -> float | None:
    """FLOPs of all updates and of every measurement of held-out text, estimated; None where those
    of the architecture are not known.

    An update runs its tokens forward and backward through the pruned model, whose weights take no
    gradient, so that the way back costs what the way forth does; where whole matrices are trained,
    those of the blocks take one, which costs as much again. `kl` also runs the tokens through the
    dense one. Adapters are not counted: a matrix of I inputs and O outputs has O I weights, its
    adapter R (O + I).
    """
    pruned, dense = (
        accounting.flops_per_token(each, context_length=sequence_length)
        for each in (shape, accounting.dense)
    )
    if pruned is None or dense is None:
        return None
    of_token = 2 * pruned + (dense if settings.loss == "kl" else 0)
    if settings.rank is None:
        of_token += 2 * accounting.num_block_parameters(shape)
    updates = settings.steps * settings.batch_size * of_token
    measured = 1 + -(-settings.steps // settings.checkpoint_every)
    heldout = num_heldout_sequences * (measured * pruned + dense)
    return float(sequence_length * (updates + heldout))
