"""The stages of a search: what each removes, in what groups, and where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models.geometry import Geometry
from pruning.search.goal import Goal
from pruning.search.settings import DEPLOYABLE_CHANNELS, SearchSettings

StageName = Literal["block", "mlp_channels", "attention_heads"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: what it removes, and where it ends.

    Args:
        target_ratio: ratio of parameters at which it ends; where other costs are asked for, the
            share of the way to all targets (`pruning.search.goal.Goal`).
        group: MLP channels or KV heads that go at a time; unused by the block stage.
        scored_on: the calibration set of its candidates; None: that of its name.
    """

    name: StageName
    target_ratio: float
    group: int = 0
    scored_on: SetName | None = None

    @property
    def token_set(self) -> SetName:
        """The calibration set that its candidates are scored on."""
        return self.scored_on or token_set_of(self.name)


def token_set_of(stage: str) -> SetName:
    """The calibration set of the published stage of that name."""
    return "block" if stage == "block" else "width"


def make_stages(accounting: Accounting, settings: SearchSettings) -> tuple[Stage, ...]:
    """The published three stages with cumulative targets.

    Raises:
        InputError: with every problem at once.
    """
    problems = stage_problems(accounting, settings)
    if problems:
        raise InputError("\n".join(problems))
    block_share, mlp_share, _ = settings.distribution
    total = math.fsum(settings.distribution)
    whole = Goal.of(accounting, settings).whole
    return (
        Stage("block", whole * (block_share / total)),
        Stage(
            "mlp_channels",
            whole * ((block_share + mlp_share) / total),
            settings.mlp_group_channels,
        ),
        Stage(
            "attention_heads",
            whole,
            settings.head_group_channels // accounting.geometry.channels_per_kv_head,
        ),
    )


def stage_problems(accounting: Accounting, settings: SearchSettings) -> list[str]:
    """What is wrong with these settings for this model, one message each."""
    _, mlp_share, head_share = settings.distribution
    if mlp_share + head_share > 0 and not accounting.family.prunes_widths:
        return [
            f"search.distribution: {list(settings.distribution)} prunes widths, but the family "
            f"{accounting.family.model_type!r} is pruned by whole blocks only; "
            "use search.distribution=[1,0,0]"
        ]
    problems = _mlp_problems(accounting.geometry, settings) if mlp_share > 0 else []
    return problems + (_head_problems(accounting.geometry, settings) if head_share > 0 else [])


def _mlp_problems(geometry: Geometry, settings: SearchSettings) -> list[str]:
    channels, group = geometry.mlp_channels, settings.mlp_group_channels
    if not 0 < group <= channels:
        return [f"search.mlp_group_channels: {group}; this model's MLPs have {channels} channels"]
    if settings.shape_constraint == "deployable" and (
        channels % DEPLOYABLE_CHANNELS or group % DEPLOYABLE_CHANNELS
    ):
        return [
            "search.shape_constraint: deployable, whose MLP widths are multiples of "
            f"{DEPLOYABLE_CHANNELS}: this model has {channels} channels and "
            f"search.mlp_group_channels takes {group} at a time; change the group, "
            "leave the widths alone (a search.distribution whose second "
            "number is 0), or use search.shape_constraint=none"
        ]
    return []


def _head_problems(geometry: Geometry, settings: SearchSettings) -> list[str]:
    group, per_head = settings.head_group_channels, geometry.channels_per_kv_head
    full_width = geometry.kv_heads * per_head
    if geometry.kv_heads == 1:
        return [
            f"search.distribution: {list(settings.distribution)} prunes heads, but this model has "
            "one KV head in a layer, which stays; use search=multipruner_mqa, "
            "or a distribution whose last number is 0"
        ]
    if not 0 < group < full_width or group % per_head or full_width % group:
        whole = [
            heads * per_head
            for heads in range(1, geometry.kv_heads)
            if geometry.kv_heads % heads == 0
        ]
        return [
            f"search.head_group_channels: {group}; groups are whole KV heads with "
            f"their queries ({per_head} query channels each here) "
            f"that divide all {full_width}, and one of them stays: one of {whole}"
        ]
    return []
