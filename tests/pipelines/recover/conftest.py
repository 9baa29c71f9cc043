"""Recoveries of the search of the tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli

QUICK = (
    "recovery.steps=12",
    "recovery.batch_size=4",
    "recovery.micro_batch_size=3",
    "recovery.sequence_length=32",
    "recovery.num_sequences=10",
    "recovery.num_heldout_sequences=8",
    "recovery.rank=4",
    "recovery.learning_rate=0.01",
    "recovery.warmup_steps=2",
    "recovery.checkpoint_every=4",
)
"""Twelve updates in half a second, over the end of the text."""

WHOLE = ("recovery=full", "recovery.rank=null", "recovery.learning_rate=0.003")
"""After those: without adapters."""

Recover = Callable[..., Outcome]


@pytest.fixture
def recover(cli: Cli, ended: Outcome) -> Recover:
    """`recover("recovery.loss=nll", folder="a")` recovers the search of the tiny model."""

    def run(*words: str, folder: str = "recovered") -> Outcome:
        return cli("recover", f"run={ended.folder}", *QUICK, *words, folder=folder)

    return run
