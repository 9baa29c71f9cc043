"""Words of the command line."""

from __future__ import annotations

import pytest

from pipelines.config.overrides import option_of


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
