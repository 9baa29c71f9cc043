"""Calibration NLL of many candidates: the unchanged prefix runs once per batch, and only the suffix
of each candidate.

Shape letters: B sequences of a batch, T tokens of a sequence, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked, masking
from pruning.shape import ModelShape

HEAD_CHUNK_TOKENS = {"cpu": 128, "cuda": 512}
"""Tokens whose logits exist at one time, by device: 512 x 128k vocabulary x 4 bytes is 262 MB. A
CPU is fastest near 128.
"""


def chunk_tokens(device: torch.device) -> int:
    """Tokens whose logits exist at one time on a device."""
    return HEAD_CHUNK_TOKENS.get(device.type, min(HEAD_CHUNK_TOKENS.values()))


class ReplayedLayer(nn.Module):
    """Stands where an unchanged layer was and returns what that layer returned.

    Other attributes are the layer's own.
    """

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__()
        self._replaced = [layer]  # in a list, so that it is not registered as a submodule
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._replaced[0], name)


class GivenHidden(nn.Module):
    """Stands where the decoder was and returns hidden states that are known, so that the model's
    own head path (scaling, soft-capping) runs on them.

    Args:
        outputs: what the decoder returned, of which only the hidden states are exchanged: heads
            read other fields too.
    """

    def __init__(self, outputs: ModelOutput) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> ModelOutput:
        self._outputs["last_hidden_state"] = inputs_embeds
        return self._outputs


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What every layer of a model in shape `base` returned on one batch of tokens (int64 [B, T],
    without padding).
    """

    base: ModelShape
    input_ids_BT: torch.Tensor
    layer_outputs: tuple[Any, ...]


@torch.inference_mode()
def run_prefix(
    loaded: LoadedModel,
    base: ModelShape,
    input_ids_BT: torch.Tensor,
    known_outputs: Sequence[Any] = (),
) -> Prefix:
    """Runs the current shape once, and keeps what each layer returned, for all candidates that are
    one removal away from it.

    Args:
        known_outputs: what its lowest layers return on this batch, which do not run then: of the
            step before, whose base differs in a layer above.
    """
    outputs: list[Any] = []
    with masked(loaded, base), replayed(loaded.layers, known_outputs), ExitStack() as hooks:
        for layer in loaded.layers:
            hooks.callback(
                layer.register_forward_hook(
                    lambda _module, _inputs, output: outputs.append(output)
                ).remove
            )
        loaded.model.base_model(input_ids=input_ids_BT, use_cache=False)
    return Prefix(base, input_ids_BT, tuple(outputs))


@torch.inference_mode()
def score_candidates(
    loaded: LoadedModel, prefix: Prefix, candidates: Sequence[ModelShape]
) -> torch.Tensor:
    """NLL of each candidate on the batch of `prefix`.

    The score is bit-identical to that of a full forward of the masked model: the layers below the
    first difference from `prefix.base` would run exactly as they did there, so they hand out what
    they returned, and the model's own forward runs the rest.

    Returns:
        [candidates, B] float64, the NLL in nats summed over the T - 1 predicted tokens of each
        sequence.
    """
    rows = []
    with masking(loaded) as become:
        for candidate in candidates:
            become(candidate)
            unchanged = prefix.layer_outputs[: prefix.base.first_difference(candidate)]
            with replayed(loaded.layers, unchanged):
                rows.append(_sequence_nll(loaded.model, prefix.input_ids_BT))
    if not rows:
        return torch.empty(0, len(prefix.input_ids_BT), dtype=torch.float64)
    return torch.stack(rows).cpu()  # once: a GPU is not waited for between candidates


@torch.inference_mode()
def sequence_nll(
    model: PreTrainedModel, input_ids_BT: torch.Tensor, *, head_chunk_tokens: int | None = None
) -> torch.Tensor:
    """Next-token NLL in nats of each sequence under the model as it stands.

    Logits are computed in the model's dtype by its own head, a chunk of tokens at a time, and cast
    to float32 before the loss (docs/concepts/method.md, "Score"); the tokens' losses are added in
    float64.

    Returns:
        [B] float64, the sum over T - 1 predicted tokens.
    """
    return _sequence_nll(model, input_ids_BT, head_chunk_tokens).cpu()


def _sequence_nll(
    model: PreTrainedModel, input_ids_BT: torch.Tensor, head_chunk_tokens: int | None = None
) -> torch.Tensor:
    """The same on the device of the head."""
    outputs = model.base_model(input_ids=input_ids_BT, use_cache=False)
    hidden_BTD = outputs.last_hidden_state[:, :-1]
    chunk = head_chunk_tokens or chunk_tokens(hidden_BTD.device)
    targets_BT = input_ids_BT[:, 1:].to(hidden_BTD.device)
    # One row of contiguous tokens: a strided slice of several sequences would make the matrix
    # product copy the head's weights for each.
    rows = zip(
        hidden_BTD.flatten(0, 1).split(chunk), targets_BT.flatten().split(chunk), strict=True
    )
    with head_alone(model, outputs):
        nll = [
            _token_nll(model(inputs_embeds=hidden[None], use_cache=False).logits[0], targets)
            for hidden, targets in rows
        ]
    return torch.cat(nll).view(targets_BT.shape).double().sum(dim=1)


def _token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[tokens] float32 from logits [tokens, V] of any dtype."""
    return functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


@contextmanager
def replayed(layers: nn.ModuleList, outputs: Sequence[Any]) -> Iterator[None]:
    """The lowest layers hand out what they returned before, while the context is open."""
    with ExitStack() as undo:
        for index, output in enumerate(outputs):
            undo.callback(layers.__setitem__, index, layers[index])
            layers[index] = ReplayedLayer(layers[index], output)
        yield


@contextmanager
def head_alone(model: PreTrainedModel, outputs: ModelOutput) -> Iterator[None]:
    """The model is its own head while the context is open: it takes hidden states as
    `inputs_embeds`.
    """
    name = model.base_model_prefix
    decoder = getattr(model, name)
    try:
        setattr(model, name, GivenHidden(outputs))
        yield
    finally:
        setattr(model, name, decoder)
