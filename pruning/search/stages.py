"""The stages of a search: what each removes, in what groups, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pruning.calibration.token_sets import SetName
from pruning.costs.accounting import Accounting
from pruning.errors import InputError
from pruning.models.geometry import Geometry

StageName = Literal["block", "mlp_channels", "attention_heads"]


Layout = Literal["any", "portable"]
"""Which shapes a search may come to: any, or those that every runtime serves."""


Strategy = Literal["greedy", "block_influence", "random"]
"""What decides the next removal: the scores of all candidates, or one of two controls that do not
look at scores (`FixedSearch`).
"""


PORTABLE_CHANNELS = 256
"""Portable widths are multiples of it (docs/concepts/formats.md, "DeciLM folder")."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: what it removes, and the ratio at which it ends."""

    name: StageName
    target_ratio: float
    group: int = 0
    """MLP channels or KV heads that go at a time; unused by the block stage."""

    @property
    def token_set(self) -> SetName:
        """The calibration set that its candidates are scored on."""
        return token_set_of(self.name)


def token_set_of(stage: str) -> SetName:
    """The calibration set of a stage, by the stage's name."""
    return "block" if stage == "block" else "width"


def make_stages(
    accounting: Accounting,
    *,
    target_ratio: float,
    distribution: Sequence[float],
    mlp_group_channels: int,
    head_group_channels: int,
    layout: Layout = "any",
) -> tuple[Stage, ...]:
    """The published three stages with cumulative targets.

    Args:
        target_ratio: removed / all parameters, 0..1 exclusive.
        distribution: shares of the block, MLP channel and attention head stages; normalised here.
        mlp_group_channels: MLP channels that go at a time.
        head_group_channels: query channels that go at a time, KV heads x queries per KV head x head
            dim.

    Raises:
        InputError: with every problem at once.
    """
    groups = {"mlp_group_channels": mlp_group_channels, "head_group_channels": head_group_channels}
    problems = stage_problems(accounting, distribution=distribution, layout=layout, **groups)
    if problems:
        raise InputError("\n".join(problems))
    total = sum(distribution)
    return (
        Stage("block", target_ratio * (distribution[0] / total)),
        Stage(
            "mlp_channels",
            target_ratio * ((distribution[0] + distribution[1]) / total),
            mlp_group_channels,
        ),
        Stage(
            "attention_heads",
            target_ratio,
            head_group_channels // accounting.geometry.channels_per_kv_head,
        ),
    )


def stage_problems(
    accounting: Accounting,
    *,
    distribution: Sequence[float],
    mlp_group_channels: int,
    head_group_channels: int,
    layout: Layout = "any",
) -> list[str]:
    """What is wrong with these settings for this model, one message each."""
    geometry, problems = accounting.geometry, []
    width_share = sum(distribution[1:]) > 0
    if width_share and not accounting.family.prunes_widths:
        return [
            f"search.distribution: {list(distribution)} prunes widths, but the family "
            f"{accounting.family.model_type!r} is pruned by whole blocks only; "
            "use search.distribution=[1,0,0]"
        ]
    if distribution[1] > 0 and not 0 < mlp_group_channels <= geometry.mlp_channels:
        problems.append(
            f"search.mlp_group_channels: {mlp_group_channels}; this model's MLPs have "
            f"{geometry.mlp_channels} channels"
        )
    elif (
        distribution[1] > 0
        and layout == "portable"
        and (geometry.mlp_channels % PORTABLE_CHANNELS or mlp_group_channels % PORTABLE_CHANNELS)
    ):
        problems.append(
            f"search.layout: portable, whose MLP widths are multiples of {PORTABLE_CHANNELS}: "
            f"this model has {geometry.mlp_channels} channels and "
            f"search.mlp_group_channels takes {mlp_group_channels} at a time; change the group, "
            "leave the widths alone (a search.distribution whose second "
            "number is 0), or use search.layout=any"
        )
    per_head = geometry.channels_per_kv_head
    full_width = geometry.kv_heads * per_head
    if distribution[2] > 0 and geometry.kv_heads == 1:
        problems.append(
            f"search.distribution: {list(distribution)} prunes heads, but this model has one KV "
            "head in a layer, which stays; use search=multipruner_mqa, "
            "or a distribution whose last number is 0"
        )
    elif distribution[2] > 0 and (
        not 0 < head_group_channels < full_width
        or head_group_channels % per_head
        or full_width % head_group_channels
    ):
        whole = [
            heads * per_head
            for heads in range(1, geometry.kv_heads)
            if geometry.kv_heads % heads == 0
        ]
        problems.append(
            f"search.head_group_channels: {head_group_channels}; groups are whole KV heads with "
            f"their queries ({per_head} query channels each here) "
            f"that divide all {full_width}, and one of them stays: one of {whole}"
        )
    return problems


def default_mlp_group(geometry: Geometry) -> int:
    """The multiple of 256 nearest to a tenth of the MLP, at least one; a quarter of MLPs that are
    too narrow for that.
    """
    if geometry.mlp_channels < 1024:
        return max(1, geometry.mlp_channels // 4)
    return max(1, round(geometry.mlp_channels / 10 / 256)) * 256
