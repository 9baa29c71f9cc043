"""Whether a model behaves as the reuse of prefixes needs."""

from __future__ import annotations

import torch

from pruning.errors import InputError
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import run_prefix, score_candidates, sequence_nll
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.shape import LayerShape, ModelShape


def require_prefix_reuse(dense: LoadedModel, tokens_BT: torch.Tensor) -> None:
    """Scores the dense model without its last layer on a few tokens both ways, since families
    outside the registry were found by their layout alone.

    Raises:
        InputError: its blocks cannot be taken out one by one, or running only the layers above a
            change gives another result than running all.
    """
    full = dense.geometry.dense
    without_last = ModelShape((*full.layers[:-1], LayerShape(0, 0)))
    try:
        with masked(dense, without_last):
            direct = sequence_nll(dense.model, tokens_BT)
        prefix = run_prefix(dense, full, tokens_BT)
        reused = score_candidates(dense, prefix, [without_last])[0]
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"model: blocks of architecture {dense.family.model_type!r} cannot be taken out one "
            f"by one: {error}"
        ) from error
    if not torch.equal(direct, reused) and not (direct.isnan() & reused.isnan()).all():
        raise InputError(
            f"model: with architecture {dense.family.model_type!r}, running only the layers above "
            f"a change gives another result than running all ({reused.item()} against "
            f"{direct.item()}), so its candidates cannot be scored"
        )
