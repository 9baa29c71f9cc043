"""What a recovery makes smaller, summed over the predicted tokens of some sequences.

Logits exist for a chunk of tokens at a time: those of a whole batch are what a training of adapters
would need most memory for, and on CPUs it costs a tenth of the time to get that from the system and
give it back (SmolLM2-135M, 4 x 256 tokens). So the gradient of the hidden states is found with the
loss, and the way back starts there.

Shape letters: B sequences, T tokens of a sequence, N = B (T - 1) predicted tokens, D hidden size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from pruning.scoring.nll import chunk_tokens, head_alone


def next_token_nll(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """NLL of the N next tokens in nats, a scalar in float32."""
    targets_N = input_ids_BT[:, 1:].flatten()

    def nll(logits: torch.Tensor, tokens: slice) -> torch.Tensor:
        return functional.cross_entropy(logits, targets_N[tokens], reduction="sum")

    return _summed(model, *_hidden(model, input_ids_BT), nll)


def distillation_kl(
    model: PreTrainedModel, dense: PreTrainedModel, input_ids_BT: torch.Tensor
) -> torch.Tensor:
    """KL(p || q) summed over N tokens in nats, p of the dense model and q of this one, a scalar in
    float32.

    As sum p log p - sum p log q; no gradient flows into the dense model.
    """
    outputs, hidden_ND = _hidden(model, input_ids_BT)
    with torch.no_grad():
        goal, goal_ND = _hidden(dense, input_ids_BT)

    def divergence(logits: torch.Tensor, tokens: slice) -> torch.Tensor:
        with torch.no_grad():
            log_p = functional.log_softmax(_logits(dense, goal_ND[tokens]), dim=-1)
            p = log_p.exp()
            negative_entropy = torch.linalg.vecdot(p, log_p).sum()
        cross_entropy = functional.cross_entropy(logits, p, reduction="sum")
        kl: torch.Tensor = cross_entropy + negative_entropy
        return kl

    with head_alone(dense, goal):
        return _summed(model, outputs, hidden_ND, divergence)


def _summed(
    model: PreTrainedModel,
    outputs: ModelOutput,
    hidden_ND: torch.Tensor,
    loss_of: Callable[[torch.Tensor, slice], torch.Tensor],
) -> torch.Tensor:
    """The sum of the losses of all chunks of tokens.

    Args:
        outputs, hidden_ND: of `_hidden`.
        loss_of: of float32 logits [tokens, V], and which of the N tokens they are.
    """
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    gradient_ND = torch.empty_like(hidden_ND)
    chunk = chunk_tokens(hidden_ND.device)
    with head_alone(model, outputs), torch.enable_grad():
        for start in range(0, len(hidden_ND), chunk):
            tokens = slice(start, start + chunk)
            hidden = hidden_ND[tokens].detach().requires_grad_()
            loss = loss_of(_logits(model, hidden), tokens)
            total += loss.detach()
            (gradient_ND[tokens],) = torch.autograd.grad(loss, hidden)
    apply: Any = _KnownGradient.apply
    found: torch.Tensor = apply(hidden_ND, gradient_ND, total)
    return found


class _KnownGradient(torch.autograd.Function):
    """A function of hidden states, whose value and gradient were computed before."""

    @staticmethod
    def forward(
        ctx: Any, _hidden_ND: torch.Tensor, gradient_ND: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(gradient_ND)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return upstream.to(gradient_ND.dtype) * gradient_ND, None, None


def _hidden(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> tuple[ModelOutput, torch.Tensor]:
    """What the decoder returns, and its hidden states [N, D] before each next token."""
    outputs = model.base_model(input_ids=input_ids_BT, use_cache=False)
    return outputs, outputs.last_hidden_state[:, :-1].flatten(0, 1)


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """[tokens, V] float32 of [tokens, D], by a model that is its own head."""
    logits: torch.Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits[0]
    return logits.float()
