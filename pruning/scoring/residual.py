"""Whether the blocks of a model may be taken out: each layer must add what its blocks return to the
residual stream, and nothing else may happen to the stream.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pruning.errors import InputError
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.out_of_memory import is_out_of_memory
from pruning.shape import LayerShape, ModelShape

_NUM_TOKENS = 8


@torch.inference_mode()
def require_plain_residual(loaded: LoadedModel) -> None:
    """Runs this very model on a few tokens with every block taken out: each layer must return what
    it got. It does not where a block adds the residual stream itself (BLOOM, the MLP of MPT), so
    that taking it out deletes the stream, or where a layer scales the stream (Doge, MiniMax), so
    that leaving out a layer without blocks gives another model than keeping it. No block is
    computed, so this costs next to nothing.

    Raises:
        InputError: a layer returns something else, or cannot run without its blocks.
    """
    vocab_size = loaded.model.config.get_text_config().vocab_size
    ids_BT = torch.arange(1, 1 + _NUM_TOKENS, device=loaded.model.device)[None] % vocab_size
    changed: list[int] = []

    def compare(index: int, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        got = inputs[0] if inputs else named["hidden_states"]
        returned = output[0] if isinstance(output, tuple) else output
        if returned.shape != got.shape or not torch.equal(returned, got.to(returned.device)):
            changed.append(index)

    nothing = ModelShape((LayerShape(0, 0),) * loaded.geometry.num_layers)
    architecture = f"architecture {loaded.family.model_type!r}"
    try:
        with masked(loaded, nothing), ExitStack() as hooks:
            for index, layer in enumerate(loaded.layers):
                hooks.callback(_after(layer, index, compare).remove)
            loaded.model.base_model(input_ids=ids_BT, use_cache=False)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"model: blocks of {architecture} cannot be taken out one by one: {error}"
        ) from error
    if changed:
        raise InputError(
            f"model: layer {changed[0]} of {architecture} changes the "
            "residual stream although both of its blocks are taken out, so its blocks cannot be "
            "removed one by one; expected a model whose layers only add what their blocks return"
        )


def _after(layer: nn.Module, index: int, compare: Any) -> Any:
    return layer.register_forward_hook(
        lambda _, inputs, named, output: compare(index, inputs, named, output), with_kwargs=True
    )
