"""The settings of a search: what is not given follows from the model, in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from pipelines.config.overrides import CONF
from pipelines.config.prune import PruneConfig
from pipelines.config.schemas import register
from pruning.costs.accounting import Accounting
from pruning.models.geometry import Geometry
from pruning.search.settings import SearchSettings
from pruning.search.stages import stage_problems
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    ("channels", "group"),
    [(11008, 1024), (14336, 1536), (18944, 1792), (1024, 256), (1023, 255), (3, 1)],
)
def test_groups_follow_from_the_model(channels: int, group: int) -> None:
    geometry = Geometry(4, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=channels)
    settings = SearchSettings.resolved(geometry, target_ratio=0.2)
    assert (settings.mlp_group_channels, settings.head_group_channels) == (group, 16)
    assert settings.seed == 42, "of orders drawn before there was a choice"


@pytest.mark.parametrize(
    ("channels", "group"), [(11008, 896), (1536, 128), (1024, 128), (1023, 127), (3, 1)]
)
def test_groups_of_an_allocation_follow_from_the_model(channels: int, group: int) -> None:
    geometry = Geometry(4, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=channels)
    settings = SearchSettings.resolved(geometry, target_ratio=0.2, strategy="allocation")
    assert settings.mlp_group_channels == group


@pytest.mark.parametrize(("channels", "group"), [(11008, 1024), (1536, 256), (1024, 256)])
def test_groups_of_a_deployable_allocation_are_deployable(channels: int, group: int) -> None:
    geometry = Geometry(4, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=channels)
    settings = SearchSettings.resolved(
        geometry, target_ratio=0.2, strategy="allocation", shape_constraint="deployable"
    )
    assert settings.mlp_group_channels == group


def test_what_is_given_stays() -> None:
    geometry = Accounting(tiny_config("llama")).geometry
    given = {
        "target_ratio": 0.3,
        "distribution": (1.0, 0.0, 0.0),
        "strategy": "random",
        "mlp_group_channels": 0,
        "head_group_channels": 0,
        "importance": "none",
        "shape_constraint": "deployable",
        "seed": 0,
    }
    settings = SearchSettings.resolved(geometry, **given)  # type: ignore[arg-type]
    assert {name: getattr(settings, name) for name in given} == given


def test_the_command_has_the_same_defaults() -> None:
    """`conf/` writes down for people what the code does without it."""
    geometry = Accounting(tiny_config("llama")).geometry
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        config = PruneConfig.of(compose("prune"))
    assert config.search.resolved(geometry) == SearchSettings.resolved(geometry, target_ratio=0.10)


@pytest.mark.parametrize("shares", [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
def test_a_group_is_no_larger_than_the_mlp(shares: tuple[float, float, float]) -> None:
    """Where MLPs are narrowed at all."""
    accounting = Accounting(tiny_config("llama"))
    settings = replace(
        SearchSettings.resolved(accounting.geometry, target_ratio=0.2, distribution=(44, 52, 4)),
        distribution=shares,
        mlp_group_channels=49,
    )
    problem = "search.mlp_group_channels: 49; this model's MLPs have 48 channels"
    assert stage_problems(accounting, settings) == ([problem] if shares[1] else [])
