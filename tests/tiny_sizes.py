"""Sizes of tiny models of architectures that need more than `tests.conftest.tiny_config` gives."""

from __future__ import annotations

from typing import Any

EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
"""Of a mixture of experts."""
LATENT: dict[str, Any] = EXPERTS | {
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 6,
    "head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
"""Of latent attention (DeepSeek-V2, arXiv 2405.04434) with experts from layer 1 on."""
