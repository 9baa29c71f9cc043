"""Scoring on a real GPU: which bits must not change, and what happens when its memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.models.checkpoint import Checkpoint
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.shape import Removal
from tests.conftest import NEEDS_GPU, tiny_config, tiny_model, tokens
from workers.evaluators.shapes import Evaluator
from workers.tasks import EvaluatorSpec, ScoreResult, ScoreTask

pytestmark = NEEDS_GPU

BLOCKS = (Removal("attention", 0, 0), Removal("attention", 2, 0), Removal("mlp", 3, 0))
CANDIDATES = (*BLOCKS, Removal("mlp_channels", 2, 640), Removal("attention_heads", 1, 6), None)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EvaluatorSpec:
    """Large enough that the GPU picks the kernels of real models; a tiny matrix could go through
    others.
    """
    folder = tmp_path_factory.mktemp("wide")
    sizes = {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1280,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    tiny_model(
        tiny_config(
            "llama", **sizes, attention_bias=False, mlp_bias=False, max_position_embeddings=1024
        )
    ).save_pretrained(folder)
    ids = tokens(8, 512, vocab=4096).numpy()
    return EvaluatorSpec(Checkpoint(folder), "float32", {"block": ids, "width": ids}, batch_size=4)


@pytest.fixture
def full_gpu() -> Iterator[None]:
    """Gives back what a test took away."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def evaluator_of(spec: EvaluatorSpec) -> Evaluator:
    evaluator = Evaluator(spec, num_gpus=1)
    evaluator.set_order(ChannelOrder.as_stored(evaluator.dense.geometry))
    return evaluator


def score(evaluator: Evaluator, batch: int = 0) -> ScoreResult:
    task = ScoreTask(
        "block",
        batch,
        evaluator.dense.geometry.dense.text,
        CANDIDATES,
        ChannelOrder.as_stored(evaluator.dense.geometry).fingerprint,
    )
    result = evaluator.run(task)
    assert isinstance(result, ScoreResult)
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_reused_prefix_changes_no_bit(spec: EvaluatorSpec, dtype: str) -> None:
    evaluator = evaluator_of(replace(spec, dtype=dtype))
    assert evaluator.describe().arithmetic.device == f"cuda {torch.cuda.get_device_name()}"
    batch_BT = torch.tensor(spec.token_sets["block"][:4], device="cuda")
    dense = evaluator.dense.geometry.dense
    reused = score(evaluator).nll
    for candidate, row in zip(CANDIDATES, reused, strict=True):
        with masked(evaluator.dense, dense if candidate is None else dense.without(candidate)):
            assert sequence_nll(evaluator.dense.model, batch_BT).tolist() == list(row)
    assert score(evaluator_of(replace(spec, dtype=dtype))).nll == reused, (
        "another evaluator has the same bits"
    )


def test_full_memory(spec: EvaluatorSpec, full_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    """From less and less memory: the whole batch, then halves with the same numbers, then one clear
    error; and with all of it again the whole.
    """
    evaluator = evaluator_of(spec)
    whole = score(evaluator)
    outcomes: list[ScoreResult | str] = []
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    evaluator._free_memory()
    weights = torch.cuda.memory_reserved()
    for megabytes in range(200, 0, -4):
        evaluator._free_memory()
        torch.cuda.set_per_process_memory_fraction((weights + megabytes * 2**20) / total)
        try:
            outcomes.append(score(evaluator))
        except InputError as error:
            outcomes.append(str(error))
            break
    kinds = [
        "refused" if isinstance(outcome, str) else "halves" if outcome.oom_split else "whole"
        for outcome in outcomes
    ]
    assert [*dict.fromkeys(kinds)] == ["whole", "halves", "refused"], kinds
    assert str(outcomes[-1]).startswith(
        "calibration.batch_size: 4 sequences of 512 tokens do not fit into the memory of "
    )
    for outcome in outcomes[:-1]:
        assert isinstance(outcome, ScoreResult)
        assert list(outcome.nll) == [pytest.approx(row, rel=1e-6) for row in whole.nll]
    assert "scoring them in two halves" in caplog.text
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert score(evaluator).nll == whole.nll
