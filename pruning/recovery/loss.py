"""What a recovery makes smaller, summed over the predicted tokens of some sequences.

Shape letters: B sequences, T tokens of a sequence, N = B (T - 1) predicted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import PreTrainedModel


def next_token_nll(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """NLL of the N next tokens in nats, a scalar in float32."""
    targets = input_ids_BT[:, 1:].flatten()
    return functional.cross_entropy(_logits(model, input_ids_BT), targets, reduction="sum")


def distillation_kl(
    model: PreTrainedModel, dense: PreTrainedModel, input_ids_BT: torch.Tensor
) -> torch.Tensor:
    """KL(p || q) summed over N tokens in nats, p of the dense model and q of this one, a scalar in
    float32.

    As sum p log p - sum p log q; no gradient flows into the dense model.
    """
    with torch.no_grad():
        log_p_NV = functional.log_softmax(_logits(dense, input_ids_BT), dim=-1)
        p_NV = log_p_NV.exp()
        negative_entropy = torch.linalg.vecdot(p_NV, log_p_NV).sum()
        del log_p_NV
    cross_entropy = functional.cross_entropy(_logits(model, input_ids_BT), p_NV, reduction="sum")
    divergence: torch.Tensor = cross_entropy + negative_entropy
    return divergence


def _logits(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """[N, V] float32."""
    logits: torch.Tensor = model(input_ids=input_ids_BT, use_cache=False).logits[:, :-1]
    return logits.flatten(0, 1).float()
