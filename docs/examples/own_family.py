"""Describe a family that is not in the registry: python own_family.py [MODEL].

StarCoder2 has an MLP of two projections and no gate, so its channels are cut elsewhere than
Llama's. Without MODEL, a small one with random weights is made.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.costs.accounting import Accounting
from pruning.importance.channel_order import channel_order, reorder
from pruning.models.families import FAMILIES, Cut, Family
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import ModelShape

STARCODER2 = Family(
    "starcoder2",  # config.model_type
    mlp_cuts=(Cut("c_fc", 0, ("up",)), Cut("c_proj", 1, ("down",))),
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 128}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}


@torch.inference_mode()
def main() -> None:
    """Prints whether the description is right, and what a narrower shape would have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", help="a folder or a hub id of the family")
    args = parser.parse_args()

    FAMILIES[STARCODER2.model_type] = STARCODER2
    torch.manual_seed(0)
    model = (
        find_checkpoint(args.model).load(dtype="float32")
        if args.model
        else AutoModelForCausalLM.from_config(AutoConfig.for_model("starcoder2", **SIZES)).eval()
    )
    loaded, accounting = LoadedModel.of(model), Accounting(model.config)
    tokens = torch.arange(1, 25)[None]
    before = model(tokens).logits
    reorder(loaded, channel_order(loaded, "l1"))
    change = (model(tokens).logits - before).abs().max() / before.abs().max()
    print(f"sorted: logits change by {change:.0e} of the largest, which is rounding")

    geometry = loaded.geometry
    shape = ModelShape.dense(
        geometry.num_layers, geometry.kv_heads // 2 or 1, geometry.mlp_channels // 2
    )
    with masked(loaded, shape):
        change = (model(tokens).logits - before).abs().max() / before.abs().max()
    print(f"{shape.text}: logits change by {change:.0e} of the largest")
    print(f"{accounting.num_parameters(shape)} parameters, ratio {accounting.ratio(shape)}")


if __name__ == "__main__":
    main()
