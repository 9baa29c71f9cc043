"""Recoveries of tiny models."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from pruning.calibration.token_sets import TokenSet
from pruning.importance.channel_order import channel_order, reorder
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.settings import RecoverySettings
from pruning.recovery.team import Team
from pruning.recovery.training import Recovery
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model, tokens
from workers.training import trainer

NARROW = ModelShape.parse("2x32 3x0 0x16 1x40")
"""Of the four layers of a tiny model: a half that pairs, one that has nothing before it."""

SETTINGS = RecoverySettings(
    loss="kl",
    steps=12,
    batch_size=4,
    micro_batch_size=3,
    rank=4,
    alpha=8,
    dropout=0.1,
    learning_rate=1e-2,
    warmup_steps=2,
    max_grad_norm=1.0,
    checkpoint_every=4,
    patience=None,
    seed=7,
)
TOLERANCE = 2e-5
"""Of the largest logit, in float32: a merged weight is rounded once, an adapter is a sum."""

TEXT, HELDOUT = TokenSet(tokens(10, 24).numpy()), TokenSet(tokens(5, 24, seed=2).numpy())


def dense_model(model_type: str = "llama") -> LoadedModel:
    """Sorted."""
    dense = LoadedModel.of(tiny_model(tiny_config(model_type)))
    reorder(dense, channel_order(dense, "l1"))
    return dense


def recovery_of(
    dense: LoadedModel,
    shape: ModelShape = NARROW,
    *,
    team: Team | None = None,
    **changes: object,
) -> Recovery:
    """`changes` are of `SETTINGS`."""
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return trainer.recovery_of(dense, shape, settings, TEXT, HELDOUT, team)


@torch.no_grad()
def changed(recovery: Recovery) -> None:
    """Gives every adapter something to say."""
    generator = torch.Generator().manual_seed(3)
    for weight in recovery.parameters.values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)


@torch.inference_mode()
def logits(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """[B, T, V], without dropout."""
    found: torch.Tensor = copy.copy(model).eval()(input_ids, use_cache=False).logits
    return found
