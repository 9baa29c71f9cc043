"""One evaluator in the process of whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from workers.pool.inline_pool import InlinePool
from workers.tasks import EvaluatorSpec


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_an_evaluator_leaves_the_process_its_threads(spec: EvaluatorSpec) -> None:
    with InlinePool(spec):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_evaluator_that_cannot_be_made_does_so_too(spec: EvaluatorSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there on"):
        InlinePool(replace(spec, checkpoint=Checkpoint(tmp_path / "gone")))
    assert torch.get_num_threads() == 3
