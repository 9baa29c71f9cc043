"""Stands in for two lines of pyproject.toml, and goes when they are there."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos: long, and not run by default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "chaos" not in config.getoption("-m"):
        out = [item for item in items if item.get_closest_marker("chaos")]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
