"""Which loaded models a folder would hold as they are, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, LlamaForCausalLM

from pruning.errors import InputError
from pruning.models.saved_copy import problem_of, save_copy
from tests.conftest import tiny_config, tiny_model


class Custom(LlamaForCausalLM):
    """A class that AutoModelForCausalLM does not know."""


def with_value(name: str, value: object) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        setattr(model, name, value)
        return model

    return change


def of_no_language(model: Any) -> Any:
    return AutoModel.from_config(tiny_config("vit", intermediate_size=48, image_size=32))


def quantized(model: Any) -> Any:
    model.config.quantization_config = {"quant_method": "fp8"}
    return model


def on_meta(*names: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        for name in names:
            model.model.layers[0].get_submodule(name).to("meta")
        return model

    return change


def without_bias(*names: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        for name in names:
            model.model.layers[0].get_submodule(name).bias = None
        return model

    return change


UP, DOWN, GATE, OUT = "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj"
LAYER = "model.layers.0."
MERGE = "has adapters of PEFT, which are no weights of its own; merge them first"
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "adapters": (with_value("peft_config", {}), MERGE),
    "loaded adapters": (with_value("_hf_peft_config_loaded", True), MERGE),
    "number": (lambda _: 7, "a value of type int; give a folder, a .gguf file, a hub id"),
    "module": (lambda _: torch.nn.Linear(2, 2), "a value of type Linear; give a folder"),
    "quantized": (quantized, "its weights are quantized, which cannot be cut"),
    "quantizer": (with_value("hf_quantizer", object()), "its weights are quantized"),
    "one on meta": (on_meta("input_layernorm"), f"{LAYER}input_layernorm.weight is on the meta"),
    "four on meta": (
        on_meta(GATE, UP),
        f"{LAYER}{GATE}.weight, {LAYER}{GATE}.bias, {LAYER}{UP}.weight and 1 more tensors are on",
    ),
    "custom": (
        lambda model: Custom(model.config),
        f"a {__name__}.Custom, and AutoModelForCausalLM makes a LlamaForCausalLM of its "
        "configuration (llama); give a causal language model of transformers",
    ),
    "headless": (
        lambda model: AutoModel.from_config(model.config),
        "LlamaModel, and AutoModelForCausalLM makes a LlamaForCausalLM of its configuration",
    ),
    "of no language": (
        of_no_language,
        "ViTModel, and AutoModelForCausalLM makes no model of its configuration (vit); give a",
    ),
    "three exchanged": (
        without_bias(OUT, GATE, UP),
        f"{LAYER}{OUT}.bias, {LAYER}{GATE}.bias, {LAYER}{UP}.bias are other than its configuration",
    ),
    "one exchanged": (without_bias(DOWN), f"{LAYER}{DOWN}.bias is other than its configuration"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_folder_would_not_open_as(name: str) -> None:
    change, said = REFUSED[name]
    problem = problem_of(change(tiny_model(tiny_config("llama"))))
    assert problem is not None
    assert said in problem


def test_more_than_the_configuration_describes() -> None:
    """Tensors count that only the model has."""
    model: Any = tiny_model(tiny_config("llama", mlp_bias=False))
    model.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.ones(48))
    problem = problem_of(model)
    assert problem is not None
    assert problem.startswith("model.layers.0.mlp.up_proj.bias is other than its configuration")


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_model_is_written_with_its_tokenizer(with_tokenizer: bool, tmp_path: Path) -> None:
    model = tiny_model(tiny_config("llama")).bfloat16()
    assert problem_of(model) is None
    tokenizer: Any = SimpleNamespace(
        save_pretrained=lambda folder: (folder / "tokenizer.json").touch()
    )
    save_copy(model, tokenizer if with_tokenizer else None, tmp_path)
    assert (tmp_path / "tokenizer.json").exists() is with_tokenizer
    written = load_file(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(written[name], tensor)
        assert written[name].dtype == torch.bfloat16


def test_what_transformers_will_not_write_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tiny_config("llama"))

    def refuses(*_: object, **__: object) -> None:
        raise NotImplementedError("not for this one\nmore")

    monkeypatch.setattr(model, "save_pretrained", refuses)
    with pytest.raises(InputError) as raised:
        save_copy(model, None, tmp_path)
    assert str(raised.value) == (
        "model: cannot be saved: not for this one; give the folder of a checkpoint"
    )
