"""KL divergence of a pruned model from the dense one, which says more of a small change than the
NLL of the few tokens that came next.

KL(p || q) = sum p log p - sum p log q, per position, p of the dense model. With logits z of q, the
NLL of the next token n is log sum exp z - z_n, so that

    KL(p || q) = sum p log p + NLL - sum p (z - z_n)

takes little more than the NLL. Sums over positions are in float64.

Shape letters: B sequences of a batch, T tokens of a sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.models.loaded_model import LoadedModel
from pruning.scoring.kept_bytes import kept_bytes
from pruning.scoring.masking import masking
from pruning.scoring.nll import Prefix, chunk_tokens, head_alone, replayed
from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, eq=False)
class Distributions:
    """Of some tokens: probabilities [tokens, V] float32, and sum p log p [tokens]."""

    probabilities: torch.Tensor
    negative_entropy: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DenseOutputs:
    """What the dense model says of one batch.

    Args:
        hidden_BTD: what it hands to its head.
        distributions: of each chunk of tokens; None: they are not kept, see
            `pruning.scoring.kept_bytes`.
    """

    hidden_BTD: torch.Tensor
    distributions: tuple[Distributions, ...] | None


@torch.inference_mode()
def dense_outputs(loaded: LoadedModel, input_ids_BT: torch.Tensor) -> DenseOutputs:
    """Runs the dense model on one batch."""
    model = loaded.model
    outputs = model.base_model(input_ids=input_ids_BT, use_cache=False)
    hidden_BTD = outputs.last_hidden_state
    if kept_bytes(input_ids_BT.numel(), model.config.get_text_config().vocab_size) == 0:
        return DenseOutputs(hidden_BTD, None)
    with head_alone(model, outputs):
        kept = tuple(_distributions(model, part) for part in _chunks(hidden_BTD))
    return DenseOutputs(hidden_BTD, kept)


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
    with masking(loaded) as become:
        for candidate in candidates:
            become(candidate)
            unchanged = prefix.layer_outputs[: prefix.base.first_difference(candidate)]
            with replayed(loaded.layers, unchanged):
                found.append(_sequence_divergence(loaded, prefix.input_ids_BT, dense))
    empty = torch.empty(0, len(prefix.input_ids_BT), dtype=torch.float64)
    if not found:
        return empty, empty
    # Fetched once: a GPU is not waited for between candidates.
    return torch.stack([kl for kl, _ in found]).cpu(), torch.stack([nll for _, nll in found]).cpu()


def _sequence_divergence(
    loaded: LoadedModel, input_ids_BT: torch.Tensor, dense: DenseOutputs
) -> tuple[torch.Tensor, torch.Tensor]:
    model = loaded.model
    outputs = model.base_model(input_ids=input_ids_BT, use_cache=False)
    hidden_BTD = outputs.last_hidden_state
    chunks = _chunks(hidden_BTD)
    next_ids = input_ids_BT[:, 1:].to(hidden_BTD.device).flatten()
    kl, nll = [], []
    with head_alone(model, outputs):
        kept = dense.distributions or (
            _distributions(model, goal) for goal in _chunks(dense.hidden_BTD)
        )
        for part, goal, ids in zip(chunks, kept, next_ids.split(len(chunks[0])), strict=True):
            logits = _logits(model, part)
            targets = ids.to(logits.device)
            nll.append(functional.cross_entropy(logits, targets, reduction="none"))
            logits -= logits.gather(1, targets[:, None])
            expected = torch.linalg.vecdot(goal.probabilities, logits)
            kl.append(goal.negative_entropy + nll[-1] - expected)
    shape = input_ids_BT[:, 1:].shape
    return (
        torch.cat(kl).view(shape).double().sum(dim=1),
        torch.cat(nll).view(shape).double().sum(dim=1),
    )


def _chunks(hidden_BTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All tokens but the last of each sequence, [tokens, D] each."""
    flat = hidden_BTD[:, :-1].flatten(0, 1)
    chunks: tuple[torch.Tensor, ...] = flat.split(chunk_tokens(hidden_BTD.device))
    return chunks


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """[tokens, V] float32, while the model is its own head."""
    logits: torch.Tensor = model(inputs_embeds=hidden[None], use_cache=False).logits[0]
    return logits.float()


def _distributions(model: PreTrainedModel, hidden: torch.Tensor) -> Distributions:
    log_p = functional.log_softmax(_logits(model, hidden), dim=-1)
    probabilities = log_p.exp()
    return Distributions(probabilities, torch.linalg.vecdot(probabilities, log_p))
