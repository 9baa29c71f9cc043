"""Counts against what the configuration says, arithmetic with a clock of our own.

Real times are never asserted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, cycle
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pruning.costs import measured
from pruning.costs.accounting import Accounting
from pruning.costs.counted_flops import flops_of_token
from pruning.costs.measured import ROLES, Role, compare_speed, weight_file_bytes
from pruning.costs.speed import SpeedSettings, Spread
from pruning.costs.timed_runs import TimedRun, timed_run
from pruning.errors import InputError, ScoringError
from pruning.export.transformers import pruned_model
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.shape import LayerShape, ModelShape
from tests.conftest import tiny_config, tiny_model, tokens

# One layer loses its MLP, others are narrowed; in the second shape the first layer has no attention
# either.
SHAPE = ModelShape((LayerShape(3, 16), LayerShape(2, 0), LayerShape(1, 48), LayerShape(3, 5)))
NO_FIRST_ATTENTION = ModelShape(
    (LayerShape(0, 48), LayerShape(2, 0), LayerShape(1, 16), LayerShape(3, 5))
)
SETTINGS = SpeedSettings(batch_size=2, prompt_tokens=6, new_tokens=4, rounds=2)
FLOAT32 = 4


def pair(
    model_type: str, shape: ModelShape = SHAPE, **changes: object
) -> tuple[dict[Role, PreTrainedModel], Accounting]:
    config = tiny_config(model_type, **changes)
    dense = tiny_model(config)
    pruned = pruned_model(LoadedModel.of(dense), shape)
    return {"dense": dense, "pruned": pruned}, Accounting(config)


@pytest.fixture(scope="module")
def llama() -> Mapping[Role, PreTrainedModel]:
    return pair("llama")[0]


def scripted(*runs: tuple[float, float]) -> Callable[[], float]:
    """A clock by which the runs, in order, take these (prefill, decode) seconds."""

    def readings() -> Iterator[float]:
        now = 0.0
        for prefill_s, decode_s in runs:
            yield from accumulate((prefill_s, decode_s), initial=now)
            now += prefill_s + decode_s + 7  # what happens between runs does not count

    return readings().__next__


def ticking() -> Callable[[], float]:
    return accumulate(cycle([1.0])).__next__


@pytest.mark.parametrize(
    "pruned_shape",
    [SHAPE, NO_FIRST_ATTENTION],
    ids=["attention everywhere", "none in the first layer"],
)
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_counts_are_those_of_the_configuration(model_type: str, pruned_shape: ModelShape) -> None:
    models, accounting = pair(model_type, pruned_shape)
    found = compare_speed(models, SETTINGS, clock=ticking())
    for cost, shape in ((found.dense, accounting.dense), (found.pruned, pruned_shape)):
        assert cost is not None
        assert cost.num_parameters == accounting.num_stored_parameters(shape)
        assert cost.kv_cache_bytes_per_token == accounting.kv_cache_bytes_per_token(
            shape, bytes_per_value=FLOAT32
        )
        assert cost.flops_per_token == accounting.flops_per_token(
            shape, context_length=SETTINGS.context_tokens
        )
        assert (cost.dtype, cost.device, cost.peak_gpu_bytes) == ("float32", "cpu", None)
    assert found.ratios is not None
    assert found.pruned is not None
    assert found.dense is not None
    for name in (
        "num_parameters",
        "memory_bytes",
        "kv_cache_bytes_per_token",
        "kv_cache_bytes",
        "flops_per_token",
    ):
        assert (
            getattr(found.ratios, name)
            == getattr(found.pruned, name) / getattr(found.dense, name)
            < 1
        )


def test_cache_of_the_whole_batch_at_the_end(llama: Mapping[Role, PreTrainedModel]) -> None:
    cost = compare_speed({"dense": llama["dense"]}, SETTINGS, clock=ticking()).dense
    assert cost is not None
    assert (
        cost.kv_cache_bytes
        == SETTINGS.batch_size * SETTINGS.context_tokens * cost.kv_cache_bytes_per_token
    )


def test_a_sliding_window_bounds_the_cache_but_not_what_a_token_takes() -> None:
    models, accounting = pair("mistral")  # a window of 8
    short, long = (
        compare_speed(
            {"pruned": models["pruned"]}, replace(SETTINGS, prompt_tokens=length), clock=ticking()
        ).pruned
        for length in (20, 40)
    )
    assert short is not None
    assert long is not None
    assert (
        short.kv_cache_bytes
        == long.kv_cache_bytes
        < SETTINGS.batch_size * 20 * short.kv_cache_bytes_per_token
    )
    assert (
        short.kv_cache_bytes_per_token
        == long.kv_cache_bytes_per_token
        == accounting.kv_cache_bytes_per_token(SHAPE, bytes_per_value=FLOAT32)
    )


def test_tied_weights_and_buffers_in_memory_count_once() -> None:
    model = pair("llama", tie_word_embeddings=True)[0]["dense"]
    untied = pair("llama", tie_word_embeddings=False)[0]["dense"]
    sizes = []
    for each in (model, untied):
        cost = compare_speed({"dense": each}, SETTINGS, clock=ticking()).dense
        assert cost is not None
        assert cost.memory_bytes == FLOAT32 * cost.num_parameters + sum(
            buffer.nbytes for buffer in each.buffers()
        )
        sizes.append(cost.num_parameters)
    assert sizes[1] - sizes[0] == 128 * 48


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("length", [1, 6, 12])
def test_decoding_with_the_cache_equals_greedy_without(model_type: str, length: int) -> None:
    models = (
        pair(model_type, NO_FIRST_ATTENTION)[0]
        if model_type in FAMILIES
        else {"dense": tiny_model(tiny_config(model_type))}
    )
    prompt = tokens(2, length)
    for model in models.values():
        ids = prompt
        with torch.inference_mode():
            for _ in range(6):
                ids = torch.cat(
                    [ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(dim=-1)],
                    dim=1,
                )
            assert torch.equal(timed_run(model, prompt, 5, ticking()).tokens, ids[:, length:])


def test_models_take_turns_and_ratios_pair_the_runs_of_a_round(
    llama: Mapping[Role, PreTrainedModel],
) -> None:
    # The machine slows down from round to round; the pruned model always takes half the prefill,
    # and 1/2, 1/4, 1/5 of the decode seconds.
    warm_up = [(90.0, 90.0), (90.0, 90.0)]
    dense_pruned = [(2.0, 2.0), (1.0, 1.0)]
    pruned_dense = [(2.0, 1.0), (4.0, 4.0)]
    dense_pruned_again = [(8.0, 10.0), (4.0, 2.0)]
    settings = replace(SETTINGS, rounds=3)
    found = compare_speed(
        llama, settings, clock=scripted(*warm_up, *dense_pruned, *pruned_dense, *dense_pruned_again)
    )
    assert found.dense is not None
    assert found.pruned is not None
    assert found.ratios is not None
    assert found.ratios.prefill_tokens_per_s == Spread(2, 2, 2)
    assert found.ratios.decode_tokens_per_s == Spread(4, 2, 5)
    assert found.dense.prefill_tokens_per_s == Spread(
        12 / 4, 12 / 8, 12 / 2
    )  # 2 sequences x 6 tokens
    assert found.dense.decode_tokens_per_s == Spread(8 / 4, 8 / 10, 8 / 2)  # 2 sequences x 4 tokens
    assert found.pruned.decode_tokens_per_s == Spread(8, 4, 8)


def test_json_holds_all_of_it(llama: Mapping[Role, PreTrainedModel]) -> None:
    found = compare_speed(
        llama, SETTINGS, disk_bytes={"dense": 1000, "pruned": 900}, clock=ticking()
    )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["settings"] == {
        "batch_size": 2,
        "prompt_tokens": 6,
        "new_tokens": 4,
        "rounds": 2,
        "seed": 0,
    }
    assert data["ratios"]["disk_bytes"] == 0.9
    assert data["pruned"]["prefill_tokens_per_s"] == {"median": 12, "lowest": 12, "highest": 12}
    assert set(data["ratios"]) == set(data["dense"]) - {"dtype", "device"}


def test_sizes_on_disk_that_one_model_has_not_have_no_ratio(
    llama: Mapping[Role, PreTrainedModel],
) -> None:
    for role in ROLES:
        found = compare_speed(llama, SETTINGS, disk_bytes={role: 1000}, clock=ticking())
        assert found.ratios is not None
        assert found.ratios.disk_bytes is None


def test_memory_of_a_gpu_is_the_weights_and_what_runs_take_on_top(
    llama: Mapping[Role, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [TimedRun(torch.zeros(2, 5), 1.0, 1.0, 96, 96, above) for above in (10, 30, 20)]
    monkeypatch.setattr(
        measured, "timed_runs", lambda models, *_, **__: dict.fromkeys(models, runs)
    )
    monkeypatch.setattr(measured, "gpus_of", lambda _: [torch.device("cuda", 0)] * 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    cost = compare_speed({"dense": llama["dense"]}, replace(SETTINGS, rounds=3)).dense
    assert cost is not None
    assert cost.device == "H200, H200"
    assert cost.peak_gpu_bytes == cost.memory_bytes + 30


def test_two_tokens_have_one_at_their_mean_position(
    llama: Mapping[Role, PreTrainedModel],
) -> None:
    shortest = replace(SETTINGS, prompt_tokens=1, new_tokens=1, rounds=1)
    cost = compare_speed({"dense": llama["dense"]}, shortest, clock=ticking()).dense
    assert cost is not None
    assert cost.flops_per_token == flops_of_token(llama["dense"], 1)


@pytest.mark.parametrize("role", ["dense", "pruned"])
def test_one_model_alone_has_no_ratios(llama: Mapping[Role, PreTrainedModel], role: Role) -> None:
    data = compare_speed({role: llama[role]}, SETTINGS, clock=ticking()).to_json()
    assert data["ratios"] is None
    assert [name for name in ("dense", "pruned") if data[name] is not None] == [role]


def test_nothing_is_left_changed(llama: Mapping[Role, PreTrainedModel]) -> None:
    ids = tokens()
    before = llama["pruned"](ids).logits
    compare_speed(llama, SETTINGS, clock=ticking())
    assert torch.equal(llama["pruned"](ids).logits, before)


def test_more_tokens_than_the_context_are_refused(llama: Mapping[Role, PreTrainedModel]) -> None:
    compare_speed({"dense": llama["dense"]}, replace(SETTINGS, prompt_tokens=252), clock=ticking())
    with pytest.raises(
        InputError,
        match=(
            r"evaluation\.cost_prompt_tokens, evaluation\.cost_new_tokens: 253 \+ 4 = 257 "
            r"tokens.* dense model is 256.*lower one"
        ),
    ):
        compare_speed(llama, replace(SETTINGS, prompt_tokens=253))


def test_other_roles_are_refused(llama: Mapping[Role, PreTrainedModel]) -> None:
    for models in ({}, {"other": llama["dense"]}):
        with pytest.raises(ValueError, match="expected dense and pruned, or one of them"):
            compare_speed(models, SETTINGS)  # type: ignore[arg-type]


def test_a_model_that_returns_no_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config("llama"))
    forward = type(model).forward
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, **given: forward(self, input_ids=given["input_ids"], use_cache=False),
    )
    with pytest.raises(ScoringError, match="LlamaForCausalLM returns NoneType for past_key_values"):
        compare_speed({"dense": model}, SETTINGS)


def test_bytes_of_weight_files(tmp_path: Path) -> None:
    for name, size in (
        ("model-1.safetensors", 10),
        ("model-2.safetensors", 5),
        ("tokenizer.json", 100),
    ):
        (tmp_path / name).write_bytes(b"0" * size)
    assert weight_file_bytes(tmp_path) == 15
    assert weight_file_bytes(tmp_path / "model-1.safetensors") == 10
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no weights"):
        weight_file_bytes(tmp_path / "empty")


@pytest.mark.parametrize("single", [False, True])
def test_files_that_are_not_loaded_do_not_count(single: bool, tmp_path: Path) -> None:
    """The same weights lie beside them in another form, as Mistral's and Llama's folders have them
    and where a GGUF was made in place.
    """
    (tmp_path / "tiny.gguf").write_bytes(b"0" * 40)
    assert weight_file_bytes(tmp_path) == 40
    (tmp_path / "consolidated.safetensors").write_bytes(b"0" * 20)
    if single:
        (tmp_path / "model.safetensors").write_bytes(b"0" * 15)
    else:
        names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
        for name, size in zip(names.values(), (10, 5), strict=True):
            (tmp_path / name).write_bytes(b"0" * size)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert weight_file_bytes(tmp_path) == 15
