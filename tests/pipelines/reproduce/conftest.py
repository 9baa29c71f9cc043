"""The command that reproduces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli

Reproduce = Callable[..., Outcome]


@pytest.fixture
def run(cli: Cli) -> Reproduce:
    return partial(cli, "reproduce")


def outside(outcome: Outcome) -> list[str]:
    checks = outcome.read("verdict.json")["checks"]
    return [check["quantity"] for check in checks if check["verdict"] == "outside"]
