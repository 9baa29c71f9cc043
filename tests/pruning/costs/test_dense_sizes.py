"""Sizes of tiny models, against counts by hand: 3 KV heads with 2 query heads of 8 channels each,
48 MLP channels, and 48 of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from transformers import LlamaForCausalLM, PretrainedConfig

from pruning.costs.dense_sizes import dense_sizes
from pruning.costs.sizes import BlockSizes, DenseSizes
from pruning.errors import InputError
from pruning.models import meta_model
from tests.conftest import tiny_config

HEAD = 48 * 128
QKV, OUTPUT = (16 + 8 + 8) * 48, 48 * 16
"""Weights of one KV head: of its rows in q, k and v, and of its columns in o."""


def sizes(model_type: str, **changes: Any) -> DenseSizes:
    return dense_sizes(tiny_config(model_type, **changes))


def test_a_model_with_biases() -> None:
    found = sizes("llama")
    attention, mlp = 3 * (QKV + OUTPUT), 3 * 48 * 48
    assert found.attention == 4 * (
        BlockSizes(
            total=attention + 3 * 32 + 48,
            weights=attention,
            per_unit=QKV + OUTPUT + 32,
            weights_per_unit=QKV + OUTPUT,
            bias_per_unit=32,
            norms=48,
        ),
    )
    assert found.mlp == 4 * (
        BlockSizes(
            total=mlp + 3 * 48,
            weights=mlp,
            per_unit=3 * 48 + 2,
            weights_per_unit=3 * 48,
            bias_per_unit=2,
            norms=48,
        ),
    )
    assert found.hidden_size == 48
    assert found.head_weights == HEAD
    assert found.num_parameters == 2 * HEAD + 48 + 4 * sum(
        block.total + block.norms for block in (found.attention[0], found.mlp[0])
    )


def test_norms_in_a_block_are_cut_with_it_and_are_no_matrices() -> None:
    """Of queries and keys; they lie behind their block, as the norm of the residual branch does."""
    [block] = set(sizes("olmo2").attention)
    assert block.per_unit == QKV + OUTPUT + 16 + 8
    assert block.weights_per_unit == QKV + OUTPUT
    assert block.bias_per_unit == 0
    assert block.total == 3 * block.per_unit
    assert block.weights == 3 * block.weights_per_unit
    assert block.norms == 48


def test_fused_projections_count_as_their_parts() -> None:
    fused, apart = sizes("phi3"), sizes("llama", attention_bias=False, mlp_bias=False)
    assert (fused.attention, fused.mlp) == (apart.attention, apart.mlp)


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Has each model that is built changed before it is counted."""
    build = meta_model.meta_model

    def change_by(change: Callable[[Any], None]) -> None:
        def changed(config: PretrainedConfig, **options: Any) -> nn.Module:
            model = build(config, **options)
            change(model)
            return model

        monkeypatch.setattr(meta_model, "meta_model", changed)

    return change_by


@pytest.mark.parametrize(
    ("module", "head_weights"),
    [
        (nn.Linear(48, 48), None),
        (nn.Conv1d(48, 48, 3), None),
        (nn.Embedding(128, 48), HEAD),
        (nn.LayerNorm(48), HEAD),
    ],
)
def test_matrices_outside_of_blocks_and_head_are_looked_up_or_not_understood(
    change: Callable[[Callable[[Any], None]], None], module: nn.Module, head_weights: int | None
) -> None:
    change(lambda model: model.model.add_module("beside", module))
    assert sizes("llama").head_weights == head_weights


@pytest.mark.parametrize("place", ["transformers_modules.tiny.modeling", "transformersx.llama"])
def test_a_forward_of_other_code_is_not_understood(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "__module__", place)
    assert sizes("llama").head_weights is None


def test_a_model_without_a_head_has_no_weights_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda model: None)
    assert sizes("llama", tie_word_embeddings=True).head_weights == 0


def test_layers_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"layers that differ in intermediate_size \(48, 24\)"):
        sizes("llama", per_layer_config={"2": {"intermediate_size": 24}})


def test_tensors_that_differ_are_refused(
    change: Callable[[Callable[[Any], None]], None],
) -> None:
    def widen(model: Any) -> None:
        model.model.layers[2].mlp.up_proj = nn.Linear(48, 96)

    change(widen)
    with pytest.raises(InputError, match=r"\[48, 48\] in layer 0 and \[96, 48\] in layer 2"):
        sizes("llama")


def test_a_model_is_trusted_as_far_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    build, trusted = meta_model.meta_model, []

    def noting(config: PretrainedConfig, *, trust_remote_code: bool = False) -> Any:
        trusted.append(trust_remote_code)
        return build(config)

    monkeypatch.setattr(meta_model, "meta_model", noting)
    dense_sizes(tiny_config("llama"))
    dense_sizes(tiny_config("llama"), trust_remote_code=True)
    assert trusted == [False, True]
