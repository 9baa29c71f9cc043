"""Words of the command line, and which of them are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pipelines.config import overrides
from pipelines.config.overrides import option_of, override_problems

GIVEN = [f"option_{number}=1" for number in range(16)]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What was composed. `wrong=...` does not compose, and `this=` not with `that=`."""
    asked: list[Sequence[str]] = []

    def compose(_: str, overrides: Sequence[str] = ()) -> DictConfig:
        asked.append(overrides)
        if any(word.startswith("wrong") for word in overrides):
            raise HydraException("no")
        if {"this=1", "that=1"} <= set(overrides):
            raise HydraException("not both")
        return OmegaConf.create({"right": 1})

    monkeypatch.setattr(overrides, "compose", compose)
    return asked


def test_one_of_many(composed: list[Sequence[str]]) -> None:
    given = [*GIVEN[:11], "wrong=1", *GIVEN[11:]]
    assert override_problems("prune", given) == ["wrong: no such option; --help lists all"]
    assert len(composed) <= 12, "17 by one after the other"


def test_all_of_them(composed: list[Sequence[str]]) -> None:
    found = override_problems("prune", ["wrong_1=1", *GIVEN, "wrong_2=1"])
    assert [problem.split(":")[0] for problem in found] == ["wrong_1", "wrong_2"]


@pytest.mark.usefixtures("composed")
def test_only_together() -> None:
    assert override_problems("prune", ["this=1", *GIVEN, "that=1"]) == ["not both"]
    found = override_problems("prune", ["this=1", *GIVEN, "that=1", "wrong=1"])
    assert found == ["wrong: no such option; --help lists all"]


@pytest.mark.usefixtures("composed")
def test_none() -> None:
    assert override_problems("prune", GIVEN) == []
    assert override_problems("prune", []) == []


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("search.seed=1", "search.seed"),
        ("+search.seed=1", "search.seed"),
        ("++search.seed=a=b", "search.seed"),
        ("~search.seed", "search.seed"),
        ("store=postgresql", "store"),
        ("grid={a: [1, 2]}", "grid"),
    ],
)
def test_the_option_of_an_override(override: str, option: str) -> None:
    assert option_of(override) == option
