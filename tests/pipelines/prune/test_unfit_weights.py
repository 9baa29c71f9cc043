"""Weights that are not those of the configuration beside them: every command says so before it
reads a single one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.models.families import FAMILIES
from tests.conftest import tiny_config, tiny_model
from tests.pipelines.conftest import Cli

Weights = dict[str, torch.Tensor]
Change = Callable[[Path, Weights], object]


def shortened(_: Path, weights: Weights) -> None:
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"][
        :40
    ].clone()


def without_two(_: Path, weights: Weights) -> None:
    del weights["model.layers.0.mlp.down_proj.weight"], weights["model.norm.weight"]


def with_values(value: float, *names: str) -> Change:
    def change(_: Path, weights: Weights) -> None:
        for name in names:
            weights[name].view(-1)[-1] = value

    return change


def of_more_layers(folder: Path, _: Weights) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))


@pytest.fixture
def unfit(checkpoint_folder: Path, tmp_path: Path) -> Callable[[Change], Path]:
    def make(change: Change) -> Path:
        folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "unfit"))
        weights = load_file(folder / "model.safetensors")
        change(folder, weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            shortened,
            (
                r"model\.layers\.1\.mlp\.up_proj\.weight is \[40, 48\], expected \[48, 48\]\. Use "
                r"weights and config\.json of one model"
            ),
        ),
        (
            without_two,
            (
                r"model\.layers\.0\.mlp\.down_proj\.weight is missing, expected \[48, 48\]; "
                r"model\.norm\.weight is missing, expected \[48\]\. "
            ),
        ),
        (
            of_more_layers,
            (
                r"config\.json: model\.layers\.4\.\S+ is missing, .*; model\.layers\.4\..*; and "
                r"\d+ "
                r"more\. "
            ),
        ),
    ],
)
def test_it_names_the_first_tensors(
    unfit: Callable[[Change], Path], change: Change, says: str
) -> None:
    checkpoint = Checkpoint(unfit(change))
    with pytest.raises(InputError, match=says):
        checkpoint.check_weights()
    with pytest.raises(InputError, match=says):
        checkpoint.load(dtype="float32")


def test_a_damaged_file_and_one_that_is_not_there(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(
        (checkpoint_folder / "model.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(
        InputError,
        match=r"model\.path: cannot read .*damaged/model\.safetensors: .*; download it again",
    ):
        Checkpoint(folder).check_weights()
    weights = load_file(checkpoint_folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model-1.safetensors", metadata={"format": "pt"})
    index: dict[str, Any] = {"weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    Checkpoint(folder).check_weights()
    index["weight_map"]["model.norm.weight"] = "model-2.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"cannot read .*model-2\.safetensors: No such file"):
        Checkpoint(folder).check_weights()


def test_the_one_file_counts_where_an_index_lies_beside_it(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """transformers opens model.safetensors and does not look at the index then."""
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "both"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-2.safetensors"}})
    )
    Checkpoint(folder).check_weights()
    Checkpoint(folder).load(dtype="float32")


def test_a_configuration_that_contradicts_itself(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "contradiction"))
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"hidden_size": 50})
    )
    with pytest.raises(
        InputError,
        match=r"config\.json in .* describes no model: .*hidden size \(50\) is not a multiple",
    ):
        Checkpoint(folder).config()


@pytest.mark.parametrize("model_type", [*FAMILIES, "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_what_fits_is_taken(model_type: str, tied: bool, tmp_path: Path) -> None:
    """The base model alone, whose names have no prefix, too, where the head is tied to it."""
    model = tiny_model(tiny_config(model_type, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "whole")
    Checkpoint(tmp_path / "whole").check_weights()
    if tied:
        model.base_model.save_pretrained(tmp_path / "base")
        Checkpoint(tmp_path / "base").check_weights()


UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(
    unfit: Callable[[Change], Path], dtype: torch.dtype, value: float
) -> None:
    def change(folder: Path, weights: Weights) -> None:
        weights |= {name: tensor.to(dtype) for name, tensor in weights.items()}
        with_values(value, UP, DOWN)(folder, weights)

    with pytest.raises(InputError, match=f"NaN or infinite values in {UP}, {DOWN} of .*; expected"):
        Checkpoint(unfit(change)).fingerprint()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_without_a_word_in_the_configuration(
    unfit: Callable[[Change], Path], dtype: torch.dtype
) -> None:
    folder = unfit(lambda _, weights: weights.update({UP: weights[UP].to(dtype)}))
    with pytest.raises(InputError, match=rf"are quantized \({UP} is F8_E\dM\d.*cannot be cut"):
        Checkpoint(folder).check_weights()


@pytest.mark.parametrize("command", ["prune", "evaluate", "export"])
def test_commands_refuse_values_that_are_not_finite(
    command: str,
    cli: Cli,
    unfit: Callable[[Change], Path],
    arguments: list[str],
    tmp_path: Path,
) -> None:
    layers = [{"kv_heads": 3, "mlp_channels": 40}] * 4
    (tmp_path / "shape.json").write_text(json.dumps({"layers": layers}))
    model = unfit(with_values(math.nan, UP))
    outcome = cli(command, *COMMANDS[command](arguments, model, tmp_path))
    assert outcome.status == 2, outcome.output
    assert f"NaN or infinite values in {UP} of" in outcome.output
    assert len(outcome.errors) == 1


COMMANDS: Mapping[str, Callable[[list[str], Path, Path], list[str]]] = {
    "prune": lambda words, model, _: [*words, f"model.path={model}"],
    "sweep": lambda words, model, _: [
        *words,
        f"model.path={model}",
        "search.target_ratio=[0.1,0.2]",
    ],
    "evaluate": lambda _, model, tmp: [
        f"model.path={model}",
        "cluster=inline",
        f"store.url=sqlite:///{tmp}/s.db",
        "evaluation=full",
    ],
    "export": lambda _, model, tmp: [
        f"model.path={model}",
        f"shape={tmp}/shape.json",
        "importance=l1",
    ],
}


@pytest.mark.parametrize("model_type", ["t5", "vit"])
def test_models_of_another_kind(checkpoint_folder: Path, tmp_path: Path, model_type: str) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "other"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(
        InputError, match=f"architecture '{model_type}' is not a decoder-only language model"
    ):
        Checkpoint(folder).check_weights()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_them(
    command: str,
    cli: Cli,
    unfit: Callable[[Change], Path],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "shape.json").write_text(json.dumps([{"kv_heads": 3, "mlp_channels": 40}] * 4))
    monkeypatch.setattr(
        Checkpoint, "fingerprint", lambda _: pytest.fail("it reads every byte of the weights")
    )
    outcome = cli(command, *COMMANDS[command](arguments, unfit(shortened), tmp_path))
    assert outcome.status == 2, outcome.output
    assert "model.layers.1.mlp.up_proj.weight is [40, 48], expected [48, 48]" in outcome.output
    assert len(outcome.errors) == 1
    assert not outcome.folder.exists()
