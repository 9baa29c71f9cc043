"""Costs outside of dense models with full attention: against what runs, and against numbers that
are derived here by hand from the published configurations.
"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, LlamaForCausalLM, PretrainedConfig

from pruning.costs.accounting import Accounting
from pruning.costs.attention_reads import attention_reads
from pruning.costs.counted_flops import flops_of_token
from pruning.costs.measured import compare_speed
from pruning.costs.speed import SpeedSettings
from tests.conftest import SIZES, tiny_config, tiny_model
from tests.tiny_sizes import EXPERTS, LATENT

WINDOW: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}

COUNTED: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "decoder_sparse_step": 1} | EXPERTS,
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32} | EXPERTS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "cohere2": WINDOW,
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "smollm3": {},
    "gpt2": {},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neox": {},
}


@pytest.mark.parametrize("model_type", sorted(COUNTED))
def test_counts_are_what_runs(model_type: str) -> None:
    """Torch counts the products that run, and the cache holds what it holds: in a short context,
    and in one that is longer than any window.
    """
    config = tiny_config(model_type, **COUNTED[model_type])
    model, accounting = tiny_model(config), Accounting(config)
    for context in (10, 40):
        assert accounting.flops_per_token(
            accounting.dense, context_length=context
        ) == flops_of_token(model, context // 2)
    assert accounting.kv_cache_bytes_per_token(
        accounting.dense, bytes_per_value=4
    ) == _measured_cache(model)


def test_one_head_of_keys_and_values_for_all_queries() -> None:
    model, accounting = tiny_model(falcon()), Accounting(falcon())
    found = accounting.kv_cache_bytes_per_token(accounting.dense, bytes_per_value=4)
    assert found == 4 * 2 * 8 * 4 == _measured_cache(model)
    assert accounting.flops_per_token(accounting.dense, context_length=40) == flops_of_token(
        model, 20
    )


def test_a_copy_of_the_keys_for_every_query_is_not_counted() -> None:
    accounting = Accounting(falcon(new_decoder_architecture=True, num_kv_heads=2))
    assert accounting.flops_per_token(accounting.dense, context_length=10) is None
    assert accounting.kv_cache_bytes_per_token(accounting.dense, bytes_per_value=2) is None


def falcon(**changes: Any) -> PretrainedConfig:
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    options = {"multi_query": True, "new_decoder_architecture": False} | changes
    config: PretrainedConfig = AutoConfig.for_model("falcon", **(sizes | options))
    return config


def test_a_token_keeps_its_latents() -> None:
    config = tiny_config("deepseek_v3", **LATENT)
    model, accounting = tiny_model(config), Accounting(config)
    found = accounting.kv_cache_bytes_per_token(accounting.dense, bytes_per_value=4)
    assert found == 4 * (16 + 4) * 4 == _measured_cache(model)


def _measured_cache(model: Any) -> int:
    settings = SpeedSettings(batch_size=1, prompt_tokens=6, new_tokens=1, rounds=1)
    dense = compare_speed({"dense": model}, settings).dense
    assert dense is not None
    return dense.kv_cache_bytes_per_token


MIXTRAL_8X7B = AutoConfig.for_model(
    "mixtral",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=8,
    num_experts_per_tok=2,
    sliding_window=None,
)
QWEN3_30B_A3B = AutoConfig.for_model(
    "qwen3_moe",
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    decoder_sparse_step=1,
)
FALCON_7B = AutoConfig.for_model(
    "falcon",
    vocab_size=65024,
    hidden_size=4544,
    num_hidden_layers=32,
    num_attention_heads=71,
    multi_query=True,
    new_decoder_architecture=False,
    parallel_attn=True,
    bias=False,
)
GEMMA_3_1B = AutoConfig.for_model(
    "gemma3_text",
    vocab_size=262144,
    hidden_size=1152,
    intermediate_size=6912,
    num_hidden_layers=26,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    sliding_window=512,
    layer_types=[
        "full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(26)
    ],
)
CONTEXT = 32768


def test_mixtral_8x7b() -> None:
    """Two of eight experts and the router; 12.9 G parameters meet a token, of which the embedding
    is looked up (arXiv 2401.04088, section 1: "13B active parameters").
    """
    attention = 4096 * (4096 + 2 * 1024 + 4096)
    experts = 2 * 3 * 4096 * 14336 + 4096 * 8
    weights = 32 * (attention + experts) + 32000 * 4096
    assert weights + 32000 * 4096 == pytest.approx(12.9e9, rel=0.005)
    positions = 32 * 2 * 2 * 4096 * CONTEXT // 2
    assert _flops(MIXTRAL_8X7B) == 2 * weights + positions
    assert _cache(MIXTRAL_8X7B) == 32 * 2 * 8 * 128 * 2


def test_qwen3_30b_a3b() -> None:
    """Eight of 128 experts: 3.3 G parameters meet a token (arXiv 2505.09388, table 2)."""
    attention = 2048 * (32 + 2 * 4) * 128 + 32 * 128 * 2048
    weights = 48 * (attention + 8 * 3 * 2048 * 768 + 2048 * 128) + 151936 * 2048
    assert weights + 151936 * 2048 == pytest.approx(3.3e9, rel=0.02)
    assert _flops(QWEN3_30B_A3B) == 2 * weights + 48 * 2 * 2 * 4096 * CONTEXT // 2
    assert _cache(QWEN3_30B_A3B) == 48 * 2 * 4 * 128 * 2


def test_falcon_7b() -> None:
    """71 query heads share one head of 64 keys and values (arXiv 2311.16867, table 13)."""
    weights = 32 * (4544 * (4544 + 2 * 64 + 4544) + 2 * 4544 * 4 * 4544) + 65024 * 4544
    assert _flops(FALCON_7B) == 2 * weights + 32 * 2 * 2 * 4544 * CONTEXT // 2
    assert _cache(FALCON_7B) == 32 * 2 * 64 * 2 == 8192


def test_gemma_3_1b() -> None:
    """22 of 26 layers see 512 positions; four see all (arXiv 2503.19786, section 2)."""
    layer = 1152 * (4 + 2 + 4) * 256 + 3 * 1152 * 6912
    positions = 4 * CONTEXT // 2 + 22 * 512
    assert _flops(GEMMA_3_1B) == 2 * (26 * layer + 262144 * 1152) + 2 * 2 * 4 * 256 * positions
    assert _cache(GEMMA_3_1B) == 26 * 2 * 256 * 2


def test_deepseek_v3() -> None:
    """512 latents and 64 rotary channels in each of 61 layers: 70,272 bytes in bfloat16 (arXiv
    2505.09343, table 1: 70.272 KB).
    """
    config = AutoConfig.for_model("deepseek_v3")
    assert (config.kv_lora_rank, config.qk_rope_head_dim, config.num_hidden_layers) == (512, 64, 61)
    assert _cache(config) == (512 + 64) * 61 * 2 == 70272
    assert _flops(config) is None


def test_what_is_not_understood_is_not_known() -> None:
    """Each router holds a correction of its scores, which is a matrix but no product."""
    changes = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
    accounting = Accounting(tiny_config("ernie4_5_moe", **changes))
    assert accounting.flops_per_token(accounting.dense, context_length=10) is None
    assert accounting.kv_cache_bytes_per_token(accounting.dense, bytes_per_value=4) is not None


def test_a_kind_of_layer_that_is_not_known_has_no_products() -> None:
    config = tiny_config("llama", layer_types=["chunked_attention", "full_attention"] * 2)
    attention = tiny_model(tiny_config("llama")).model.layers[0].self_attn
    unknown, full = (attention_reads(attention, config, layer) for layer in (0, 1))
    assert (unknown.products, unknown.cached) == (None, 2 * 3 * 8)
    assert (full.products, full.cached, full.window) == (2 * 48, 2 * 3 * 8, None)


def test_a_model_without_a_head_multiplies_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other matrix of 128 tokens by 48 channels is looked up."""
    config = tiny_config("llama", tie_word_embeddings=True)
    whole = Accounting(config)
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda model: None)
    headless = Accounting(config)
    flops = [each.flops_per_token(each.dense, context_length=10) for each in (whole, headless)]
    assert None not in flops
    assert flops[0] - flops[1] == 2 * 128 * 48


def _flops(config: Any) -> int | None:
    accounting = Accounting(config)
    return accounting.flops_per_token(accounting.dense, context_length=CONTEXT)


def _cache(config: Any) -> int | None:
    accounting = Accounting(config)
    return accounting.kv_cache_bytes_per_token(accounting.dense, bytes_per_value=2)
