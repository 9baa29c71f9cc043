"""The manifests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docker.files import load


@pytest.fixture(scope="session")
def compose() -> Any:
    return load("compose.yaml")


@pytest.fixture(scope="session")
def services(compose: Any) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="session")
def rayjob() -> Any:
    return load("rayjob.yaml")
