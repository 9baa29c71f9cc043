"""What settings become where nothing is given, and that nothing that is given gets lost."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pruning.costs.target import Cost, Target
from pruning.models.geometry import Geometry
from pruning.search.settings import LazySettings, SearchSettings, ShapeConstraint, StrategyName


def geometry_of(channels: int) -> Geometry:
    return Geometry(4, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=channels)


def test_what_is_given_is_what_is_there() -> None:
    cost = Cost("flops", lambda _: 1, 2)
    given = {
        "strategy": "allocation",
        "target_ratio": 0.3,
        "distribution": (0.0, 1.0, 1.0),
        "mlp_group_channels": 5,
        "head_group_channels": 7,
        "importance": "l1",
        "shape_constraint": "deployable",
        "compensation": "least_squares",
        "seed": 3,
        "rounds": 9,
        "table_ratio": 0.25,
        "targets": (Target("search.target.flops", cost, 0.5),),
        "lazy": LazySettings(wave_size=1, tolerance=0.5, rescore_every=2, near_layers=3),
        "judged_by": "score_per_cost",
    }
    settings = SearchSettings.resolved(geometry_of(48), **given)  # type: ignore[arg-type]
    assert {field.name: getattr(settings, field.name) for field in fields(settings)} == given


def test_what_is_not_given_is_the_published_search() -> None:
    settings = SearchSettings.resolved(geometry_of(48), target_ratio=0.3)
    assert settings == SearchSettings(
        strategy="greedy",
        target_ratio=0.3,
        distribution=(44.0, 52.0, 4.0),
        mlp_group_channels=12,
        head_group_channels=16,
        importance="activation",
        shape_constraint="none",
        compensation="none",
        seed=42,
        rounds=2,
        table_ratio=None,
        targets=(),
        lazy=None,
        judged_by="score",
    )


@pytest.mark.parametrize(
    ("table_ratio", "rounds", "expected"),
    [(None, None, 2), (0.25, None, 1), (None, 1, 1), (0.25, 3, 3)],
)
def test_a_table_of_another_ratio_is_measured_once(
    table_ratio: float | None, rounds: int | None, expected: int
) -> None:
    settings = SearchSettings.resolved(
        geometry_of(48), target_ratio=0.3, table_ratio=table_ratio, rounds=rounds
    )
    assert settings.rounds == expected


@pytest.mark.parametrize(
    ("strategy", "constraint", "channels", "group"),
    [
        ("greedy", "none", 11008, 1024),
        ("greedy", "none", 14336, 1536),
        ("greedy", "none", 1024, 256),
        ("greedy", "none", 1023, 255),
        ("greedy", "none", 3, 1),
        ("greedy", "deployable", 14336, 1536),
        ("allocation", "none", 18944, 1536),
        ("allocation", "none", 11008, 896),
        ("allocation", "none", 1023, 127),
        ("allocation", "deployable", 11008, 1024),
        ("allocation", "deployable", 1024, 256),
        ("uniform", "one_width", 11008, 64),
        ("uniform", "one_width", 1024, 64),
        ("uniform", "one_width", 1023, 1),
    ],
)
def test_groups_are_a_share_of_the_mlp_in_friendly_numbers(
    strategy: StrategyName, constraint: ShapeConstraint, channels: int, group: int
) -> None:
    """A tenth in 256s; of allocations a twelfth in 128s; of one width 64 from every layer."""
    settings = SearchSettings.resolved(
        geometry_of(channels), target_ratio=0.3, strategy=strategy, shape_constraint=constraint
    )
    assert settings.mlp_group_channels == group
