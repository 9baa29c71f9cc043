"""One evaluator, without Ray: memory that runs out, several devices, a model that came by another
way, weights that are sorted more than once.
"""

from __future__ import annotations

import ctypes
import logging
import logging.handlers
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from pruning.errors import InputError
from pruning.importance.channel_order import ChannelOrder
from pruning.importance.criteria import Importance
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config, tiny_model, tokens
from workers.evaluators import shapes as module
from workers.evaluators.shapes import Evaluator
from workers.tasks import EvaluatorSpec, OrderTask, ScoreKind, ScoreResult, ScoreTask

DENSE = ModelShape.dense(4, 3, 48)
CANDIDATES = (
    Removal("attention", 0, 0),
    Removal("mlp_channels", 1, 0),
    Removal("mlp_channels", 2, 128),
    None,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> EvaluatorSpec:
    """A model whose memory is in its activations: 4 x 1,024 tokens of 256 channels are 4 MB a
    tensor.
    """
    folder = tmp_path_factory.mktemp("wide")
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 32,
    }
    tiny_model(
        tiny_config(
            "llama", **sizes, attention_bias=False, mlp_bias=False, max_position_embeddings=1024
        )
    ).save_pretrained(folder)
    ids = tokens(4, 1024).numpy()
    return EvaluatorSpec(Checkpoint(folder), "float32", {"block": ids, "width": ids}, batch_size=4)


def score(evaluator: Evaluator) -> ScoreResult:
    order = ChannelOrder.as_stored(evaluator.dense.geometry)
    evaluator.set_order(order)
    result = evaluator.run(
        ScoreTask("block", 0, evaluator.dense.geometry.dense.text, CANDIDATES, order.fingerprint)
    )
    assert isinstance(result, ScoreResult)
    return result


def score_with(evaluator: Evaluator, spare_bytes: int) -> ScoreResult:
    """With so much address space left: what needs more is refused by the system, as on a machine
    that is full.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes, before[1]))
    try:
        return score(evaluator)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def with_more_and_more_memory(
    spec: EvaluatorSpec,
) -> tuple[ScoreResult, list[ScoreResult | str], int, ScoreResult]:
    """The score with all memory; with 8 MB, 12 MB and so on until a whole batch fits; the warnings
    logged; with all memory again.
    """
    evaluator, outcomes = Evaluator(spec), list[ScoreResult | str]()
    ctypes.CDLL(None).mallopt(
        -3, 2**20
    )  # M_MMAP_THRESHOLD: every tensor asks the system, whatever room there is in the heap
    warnings = logging.handlers.BufferingHandler(1000)
    logging.getLogger("workers.evaluators.shapes").addHandler(warnings)
    whole = score(evaluator)
    for megabytes in range(8, 400, 4):
        evaluator._prefix = None
        try:
            outcomes.append(score_with(evaluator, megabytes * 10**6))
        except InputError as error:
            outcomes.append(str(error))
            continue
        if not outcomes[-1].oom_split:  # type: ignore[union-attr]
            break
    return (
        whole,
        outcomes,
        sum("scoring them in two halves" in record.getMessage() for record in warnings.buffer),
        score(evaluator),
    )


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux: the limit of a process's memory"
)
@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_scored_in_halves(wide: EvaluatorSpec) -> None:
    """And when halves do not fit either, the message says what to change.

    In a process of its own, whose heap has no room from before.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        whole, outcomes, num_warnings, again = process.submit(
            with_more_and_more_memory, wide
        ).result()
    assert not whole.oom_split
    assert again.nll == whole.nll, "memory is there again"
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    halves = [
        outcome for outcome in outcomes if isinstance(outcome, ScoreResult) and outcome.oom_split
    ]
    assert refused, "neither fits"
    assert halves, "halves fit"
    assert len(refused) + len(halves) + 1 == len(outcomes), "and then the whole"
    assert {message.partition(" of ")[0] for message in refused} == {
        "calibration.batch_size: 4 sequences"
    }
    assert isinstance(outcomes[-1], ScoreResult)
    assert outcomes[-1].nll == whole.nll
    for result in halves:
        assert [list(row) for row in result.nll] == [
            pytest.approx(row, rel=1e-6) for row in whole.nll
        ], "sequences keep their order"
    assert num_warnings == len(refused) + len(halves)


def test_one_sequence_that_does_not_fit(
    wide: EvaluatorSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(replace(wide, batch_size=1))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "run_prefix", full)
    with pytest.raises(
        InputError,
        match=(
            r"calibration: one sequence of 1024 tokens does not fit into the memory of "
            r".*cluster.num_gpus_per_evaluator"
        ),
    ):
        score(evaluator)


def test_other_errors_are_not_taken_for_full_memory(
    wide: EvaluatorSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = Evaluator(wide)

    def broken(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module, "run_prefix", broken)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RuntimeError, match="cannot be multiplied"),
    ):
        score(evaluator)
    assert "halves" not in caplog.text


def test_a_model_that_accelerate_spreads_has_the_same_scores(wide: EvaluatorSpec) -> None:
    """The hooks that move activations between devices are the real ones; the devices are both the
    CPU here.
    """
    plain, spread = Evaluator(wide), Evaluator(wide)
    places = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    dispatch_model(
        spread.dense.model,
        places | {f"model.layers.{layer}": "cpu" for layer in range(4)},
        force_hooks=True,
    )
    assert hasattr(spread.dense.model.model.layers[1], "_hf_hook")
    assert score(spread).nll == score(plain).nll
    assert hasattr(spread.dense.model.model.layers[1], "_hf_hook"), (
        "layers are back with their hooks"
    )


def test_a_node_that_does_not_see_the_checkpoint(wide: EvaluatorSpec, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"model.path: .*/elsewhere is not there on \S+: evaluators read the weights from "
            r"the path .* that every node sees"
        ),
    ):
        Evaluator(replace(wide, checkpoint=Checkpoint(tmp_path / "elsewhere")))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_over_two_gpus(wide: EvaluatorSpec) -> None:
    evaluator = Evaluator(wide)
    assert len({parameter.device for parameter in evaluator.dense.model.parameters()}) > 1
    assert score(evaluator).nll == [
        pytest.approx(row, rel=1e-3) for row in score(Evaluator(wide)).nll
    ]


@pytest.mark.parametrize("kind", ["nll", "kl"])
def test_layers_below_a_change_of_the_base_do_not_run_again(
    spec: EvaluatorSpec, kind: ScoreKind
) -> None:
    """With the bits of an evaluator that runs them all; on another batch or text they do run."""
    removals = (Removal("mlp_channels", 1, 8), Removal("attention", 3, 0), None)
    bases = [
        DENSE,
        DENSE.without(Removal("mlp_channels", 2, 8)),
        DENSE.without(Removal("attention", 1, 0)),
        DENSE.without(Removal("attention", 0, 0)),
    ]
    order = ChannelOrder.as_stored(Evaluator(spec).dense.geometry)

    def asked(evaluator: Evaluator, base: ModelShape, text: str, batch: int) -> ScoreResult:
        evaluator.set_order(order)
        task = ScoreTask(text, batch, base.text, removals, order.fingerprint, kind)
        result = evaluator.run(task)
        assert isinstance(result, ScoreResult)
        return result

    used, run = Evaluator(spec), list[int]()
    lowest = list[int]()
    used.dense.layers[0].register_forward_hook(lambda *_: lowest.append(len(run)))
    for base, text, batch in (
        *((base, "block", 0) for base in (*bases, bases[3])),
        (bases[3], "block", 1),
        (bases[3], "width", 1),
        (bases[0], "width", 1),
    ):
        result = asked(used, base, text, batch)
        assert result.nll == asked(Evaluator(spec), base, text, batch).nll
        run.append(result.prefix_layers)
    # dense; from layer 2 on, from 1, from 0; the same again; another batch; another text; from 0
    assert run == [4, 2, 3, 4, 0, 4, 4, 4]
    assert {0, 3} <= set(lowest)
    assert not {1, 2, 4} & set(lowest), "what is known does not run"


def test_a_task_for_another_order_is_refused(spec: EvaluatorSpec) -> None:
    evaluator = Evaluator(spec)
    stored = ChannelOrder.as_stored(evaluator.dense.geometry)
    evaluator.set_order(stored)
    evaluator.set_order(stored)
    with pytest.raises(ValueError, match="the task is for channel order other"):
        evaluator.run(ScoreTask("block", 0, DENSE.text, (None,), "other"))


@pytest.mark.parametrize("before", ["l1", "activation"])
def test_weights_are_sorted_again_for_another_search(
    spec: EvaluatorSpec, before: Importance
) -> None:
    """Whatever searches came before on the same evaluator: orders and scores are those of a fresh
    one, to the bit.
    """
    removals = (Removal("mlp_channels", 1, 8), Removal("attention_heads", 0, 1), None)

    def search(
        evaluator: Evaluator, importance: Importance, set_name: str
    ) -> tuple[ChannelOrder, object]:
        order = evaluator.run(OrderTask(importance, set_name))
        assert isinstance(order, ChannelOrder)
        evaluator.set_order(order)
        result = evaluator.run(ScoreTask("block", 0, DENSE.text, removals, order.fingerprint))
        assert isinstance(result, ScoreResult)
        return order, result.nll

    used = Evaluator(spec)
    first, _ = search(used, before, "width")
    again, nll = search(used, "activation", "block")
    fresh, fresh_nll = search(Evaluator(spec), "activation", "block")
    assert first.fingerprint != again.fingerprint == fresh.fingerprint
    assert nll == fresh_nll
    back = used.run(ScoreTask("block", 0, DENSE.text, removals, again.fingerprint))
    assert isinstance(back, ScoreResult)
    assert back.nll == nll


def test_sorting_never_reaches_the_checkpoint_on_disk(spec: EvaluatorSpec) -> None:
    """Weights are mapped from their file and sorted in place: the file must stay what it was."""
    before = spec.checkpoint.fingerprint()
    evaluator = Evaluator(spec)
    order = evaluator.run(OrderTask("l1"))
    assert isinstance(order, ChannelOrder)
    stored = [parameter.clone() for parameter in evaluator.dense.model.parameters()]
    evaluator.set_order(order)
    assert any(
        (was != now).any()
        for was, now in zip(stored, evaluator.dense.model.parameters(), strict=True)
    ), "nothing was sorted"
    assert spec.checkpoint.fingerprint() == before
