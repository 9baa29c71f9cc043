"""One pruned model in training: its updates, its held-out NLL, and its state in a file.

Every update is a function of the state before it and of its number, so that a training that goes on
from a file takes the steps that it would have taken: which sequences it sees and what dropout drops
follow from seed and number. An update is computed in parts, `micro_batch_size` sequences each, by
one process or by several.

Shape letters: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from pruning.calibration.token_sets import Tokens, TokenSet
from pruning.recovery.adapters import (
    AdaptedMatrix,
    adapter_metadata,
    add_adapters,
    add_differences,
    dropping,
    merged,
)
from pruning.recovery.loss import distillation_kl, next_token_nll
from pruning.recovery.settings import RecoverySettings
from pruning.recovery.team import Team
from pruning.scoring.nll import sequence_nll

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Update:
    """One step of the optimizer.

    Args:
        loss: nats per predicted token, before the step.
        grad_norm: of all that is trained, before it was limited.
    """

    loss: float
    grad_norm: float
    learning_rate: float


class Recovery:
    """A pruned model with what is trained of it, and the optimizer of that.

    Args:
        model: gets adapters, or what is added to whole matrices; its own weights stay as they are.
        dense: what `kl` learns from; its weights may be those that `model` is cut from.
        matrices: that are trained.
        text: what is trained on.
        heldout: what tells whether it helps.
        shape: of `model`, canonical text.
        team: this process, and others that train the same.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dense: PreTrainedModel,
        matrices: Sequence[AdaptedMatrix],
        settings: RecoverySettings,
        text: TokenSet,
        heldout: TokenSet,
        shape: str,
        team: Team | None = None,
    ) -> None:
        self.model, self.dense, self.settings, self.shape = model, dense, settings, shape
        self.text, self.heldout, self._team = text, heldout, team or Team()
        whole = settings.rank is None
        self._adapted = () if whole else matrices
        self.parameters = (
            add_differences(model, matrices) if whole else add_adapters(model, matrices, settings)
        )
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            weight_decay=0.0,
            foreach=False if whole else None,  # one more copy of all would be in memory on GPUs
        )

    def update(self, step: int) -> Update | None:
        """Update number `step`, the first being 1.

        None: loss or gradient is not finite, and nothing was changed.
        """
        settings = self.settings
        batch = self.text.input_ids[positions(step, settings, self.text.num_sequences)]
        rate = settings.rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        with dropping(self.model, self._adapted), torch.random.fork_rng():
            loss = self._backward(batch, step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
        if not np.isfinite(loss) or not torch.isfinite(norm):
            return None
        self._optimizer.step()
        return Update(loss, float(norm), rate)

    def check_same(self) -> None:
        """See `Team.check_same`."""
        self._team.check_same(list(self.parameters.values()))

    def heldout_nll(self) -> float:
        """Nats per predicted token of the held-out text, of the model as it will be stored: a
        change below the rounding of its weights is none.
        """
        self.model.eval()
        with merged(self.model, self._adapted):
            return self._nll(self.model)

    def dense_nll(self) -> float:
        """The same of the dense model."""
        return self._nll(self.dense)

    def _nll(self, model: PreTrainedModel) -> float:
        batches = list(self.heldout.batches(self.settings.micro_batch_size))
        own = [
            float(sequence_nll(model, self._tensor(batches[number])).sum())
            for number in self._team.share(len(batches))
        ]
        predicted = self.heldout.num_sequences * (self.heldout.sequence_length - 1)
        return math.fsum(self._team.gathered(own)) / predicted

    def save(self, path: Path, step: int) -> None:
        """Adapters and moments after update `step`."""
        tensors = {name: weight.detach() for name, weight in self.parameters.items()}
        for name, weight in self.parameters.items():
            state = self._optimizer.state[weight]
            tensors |= {f"{name}.{moment}": state[moment] for moment in _MOMENTS if state}
        cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(cpu, path, metadata=adapter_metadata(self.shape, self.settings, step=step))

    def load(self, path: Path) -> int:
        """The state in a file; returns the number of updates that it had had."""
        with safe_open(path, framework="pt") as file:
            step = int(json.loads(file.metadata()["recovery"])["step"])
            for name, weight in self.parameters.items():
                weight.data.copy_(file.get_tensor(name))
                if step:
                    moments = {each: file.get_tensor(f"{name}.{each}") for each in _MOMENTS}
                    self._optimizer.state[weight] = {
                        "step": torch.tensor(float(step)),
                        **{each: value.to(weight.device) for each, value in moments.items()},
                    }
        return step

    def _backward(self, batch_BT: Tokens, step: int) -> float:
        """Adds up the gradients of a batch; returns its loss."""
        num_tokens, losses = int(batch_BT[:, 1:].size), list[float]()
        parts = list(TokenSet(batch_BT).batches(self.settings.micro_batch_size))
        weights, gradients = list(self.parameters.values()), list[list[torch.Tensor]]()
        for number in self._team.share(len(parts)):
            seeds = np.random.default_rng([self.settings.seed, step, number])
            torch.manual_seed(int(seeds.integers(2**32)))
            loss = self._loss(self._tensor(parts[number]))
            (loss / num_tokens).backward()
            losses.append(float(loss.detach()))
            if self._team.size > 1:
                gradients.append([_taken(weight) for weight in weights])
        if self._team.size > 1:
            self._team.add_up(weights, gradients, len(parts))
        return math.fsum(self._team.gathered(losses)) / num_tokens

    def _loss(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        if self.settings.loss == "kl":
            return distillation_kl(self.model, self.dense, input_ids_BT)
        return next_token_nll(self.model, input_ids_BT)

    def _tensor(self, input_ids_BT: Tokens) -> torch.Tensor:
        return torch.tensor(input_ids_BT, device=self.model.device)


def _taken(weight: nn.Parameter) -> torch.Tensor:
    """Its gradient, which it has no more afterwards."""
    gradient, weight.grad = weight.grad, None
    assert gradient is not None
    return gradient


def positions(step: int, settings: RecoverySettings, num_sequences: int) -> list[int]:
    """Which sequences update `step` sees: all of them in an order that the seed draws, then all of
    them in another.
    """
    first = (step - 1) * settings.batch_size
    places = range(first, first + settings.batch_size)
    epochs = sorted({place // num_sequences for place in places})
    orders = {
        epoch: np.random.default_rng([settings.seed, epoch]).permutation(num_sequences)
        for epoch in epochs
    }
    return [int(orders[place // num_sequences][place % num_sequences]) for place in places]
