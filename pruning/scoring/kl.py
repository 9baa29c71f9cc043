"""KL divergence of a pruned model from the dense one, which says more of a small change than the
NLL of the few tokens that came next.

KL(p || q) = sum p log p - sum p log q, per position, p of the dense model; sums over positions in
float64.

Shape letters: B sequences of a batch, T tokens of a sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch.nn import functional

from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import Prefix, chunk_tokens, head_alone, replayed
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, eq=False)
class DenseOutputs:
    """Hidden states [B, T, D] that the dense model hands to its head on one batch: from them its
    distributions are computed again, a chunk of tokens at a time, which takes T x V less memory.
    """

    hidden_BTD: torch.Tensor


@torch.inference_mode()
def dense_outputs(loaded: LoadedModel, input_ids_BT: torch.Tensor) -> DenseOutputs:
    """Runs the dense model on one batch."""
    outputs = loaded.model.base_model(input_ids=input_ids_BT, use_cache=False)
    return DenseOutputs(outputs.last_hidden_state)


@torch.inference_mode()
def divergence(
    loaded: LoadedModel,
    prefix: Prefix,
    dense: DenseOutputs,
    candidates: Sequence[ModelShape],
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL from the dense model, and NLL, of each candidate on the batch of `prefix`.

    Returns:
        Two [candidates, B] float64, in nats, summed over the T - 1 predicted tokens.
    """
    found = []
    for candidate in candidates:
        unchanged = prefix.layer_outputs[: prefix.base.first_difference(candidate)]
        with ExitStack() as stack:
            stack.enter_context(masked(loaded, candidate))
            stack.enter_context(replayed(loaded.layers, unchanged))
            found.append(_sequence_divergence(loaded, prefix.input_ids_BT, dense))
    empty = torch.empty(0, len(prefix.input_ids_BT), dtype=torch.float64)
    if not found:
        return empty, empty
    return torch.stack([kl for kl, _ in found]), torch.stack([nll for _, nll in found])


def _sequence_divergence(
    loaded: LoadedModel, input_ids_BT: torch.Tensor, dense: DenseOutputs
) -> tuple[torch.Tensor, torch.Tensor]:
    model = loaded.model
    outputs = model.base_model(input_ids=input_ids_BT, use_cache=False)
    hidden = outputs.last_hidden_state[:, :-1].flatten(0, 1)
    target = dense.hidden_BTD[:, :-1].flatten(0, 1)
    next_ids = input_ids_BT[:, 1:].to(hidden.device).flatten()
    chunk = chunk_tokens(hidden.device)
    kl, nll = [], []
    with head_alone(model, outputs):
        for part, goal, ids in zip(
            hidden.split(chunk), target.split(chunk), next_ids.split(chunk), strict=True
        ):
            logits = model(inputs_embeds=part[None], use_cache=False).logits[0].float()
            wanted = model(inputs_embeds=goal[None], use_cache=False).logits[0].float()
            log_q = functional.log_softmax(logits, dim=-1)
            log_p = functional.log_softmax(wanted, dim=-1)
            kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
            nll.append(functional.nll_loss(log_q, ids.to(log_q.device), reduction="none"))
    shape = input_ids_BT[:, 1:].shape
    return (
        torch.cat(kl).view(shape).double().sum(dim=1).cpu(),
        torch.cat(nll).view(shape).double().sum(dim=1).cpu(),
    )
