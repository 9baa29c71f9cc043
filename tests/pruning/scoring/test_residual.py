"""Models whose blocks do more than add to the residual stream are refused, before they are scored
and before they are written: a perplexity of the vocabulary's size used to end with status 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.errors import InputError
from pruning.export.surgery import PrunedLayer, pruned_tensors
from pruning.models.checkpoint import Checkpoint
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.residual import require_plain_residual
from tests.conftest import tiny_config, tiny_model, tokens
from workers.evaluators.shapes import Evaluator
from workers.tasks import EvaluatorSpec

FULL = ["full_attention"] * 4
REFUSED: dict[str, dict[str, object]] = {
    # both blocks, or the MLP, add the residual stream themselves
    "bloom": {"n_head": 6, "n_layer": 4, "num_key_value_heads": 6},
    "mpt": {"d_model": 48, "n_heads": 6, "n_layers": 4, "expansion_ratio": 1},
    # the stream is scaled or mixed
    "doge": {},
    "minimax": {"num_local_experts": 2, "full_attn_alpha_factor": 3.5, "layer_types": FULL},
    "deepseek_v4": {},
}
ACCEPTED: dict[str, dict[str, object]] = {family: {} for family in FAMILIES} | {
    "gpt2": {"n_embd": 48, "n_layer": 4, "n_head": 6, "n_inner": 48, "num_key_value_heads": 6},
    "gpt_neox": {"num_key_value_heads": 6},
    "granite": {"residual_multiplier": 0.5},
    "cohere": {},
    "mixtral": {"num_local_experts": 2},
}


def model_of(model_type: str, own: dict[str, object]) -> LoadedModel:
    return LoadedModel.of(tiny_model(tiny_config(model_type, **own)))


@pytest.mark.parametrize("model_type", ACCEPTED)
def test_blocks_that_add_to_the_stream(model_type: str) -> None:
    require_plain_residual(model_of(model_type, ACCEPTED[model_type]))


@pytest.mark.parametrize("model_type", REFUSED)
def test_layers_that_change_the_stream_without_blocks(model_type: str) -> None:
    dense = model_of(model_type, REFUSED[model_type])
    says = f"layer 0 of architecture '{model_type}' changes the residual stream although both"
    with pytest.raises(InputError, match=says):
        require_plain_residual(dense)
    geometry = dense.geometry
    kept = PrunedLayer(1, 1, geometry.kv_heads, geometry.mlp_channels)
    with pytest.raises(InputError, match=says):
        next(pruned_tensors(dense, [kept]))


def test_layers_that_cannot_run_without_their_blocks() -> None:
    dense = model_of("gpt_oss", {"num_local_experts": 2})
    with pytest.raises(InputError, match="'gpt_oss' cannot be taken out one by one: "):
        require_plain_residual(dense)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_layer_may_return_more_than_the_stream(factor: int) -> None:
    """The stream is the first of what it returns."""
    dense = model_of("llama", {})
    layer: Any = dense.layers[3]
    forward = layer.forward

    def twofold(hidden: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return factor * forward(hidden, **kwargs), None

    layer.forward = twofold
    norm = dense.model.get_submodule("model.norm")
    norm.register_forward_pre_hook(lambda _, inputs: inputs[0][:1])
    if factor == 1:
        require_plain_residual(dense)
    else:
        with pytest.raises(InputError, match="layer 3 of architecture 'llama' changes"):
            require_plain_residual(dense)


@pytest.mark.parametrize("model_type", ["bloom", "mpt"])
def test_an_evaluator_refuses_before_its_first_score(model_type: str, tmp_path: Path) -> None:
    tiny_model(tiny_config(model_type, **REFUSED[model_type])).save_pretrained(tmp_path)
    ids = tokens(2, 16).numpy()
    spec = EvaluatorSpec(Checkpoint(tmp_path), "float32", {"block": ids}, batch_size=2)
    with pytest.raises(InputError, match=f"architecture '{model_type}' changes the residual"):
        Evaluator(spec)
