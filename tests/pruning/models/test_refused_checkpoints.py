"""Folders that are no checkpoint which can be pruned, and what is said of each."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.models.meta_model import meta_model
from tests.conftest import SIZES, tiny_config


def configured(folder: Path, **changes: object) -> Path:
    config = SIZES | {"model_type": "llama"} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("size", [0, -1, 0.0])
def test_a_size_of_nothing(name: str, size: float, tmp_path: Path) -> None:
    said = f"config.json in .* describes no model: {name} {size}; sizes are above 0"
    with pytest.raises(InputError, match=said):
        Checkpoint(configured(tmp_path, **{name: size})).config()


def test_a_size_of_one_is_one(tmp_path: Path) -> None:
    """One KV head for all queries."""
    config = Checkpoint(configured(tmp_path, num_key_value_heads=1)).config()
    assert (config.num_key_value_heads, config.hidden_size) == (1, 48)


def test_a_value_of_another_type(tmp_path: Path) -> None:
    folder = configured(tmp_path, hidden_size="wide")
    with pytest.raises(InputError) as raised:
        Checkpoint(folder).config()
    said = str(raised.value)
    assert said.startswith(f"model.path: config.json in {folder} describes no model: ")
    assert "'wide'" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "trust", "said"),
    [
        ({}, False, "has the unknown architecture 'own'"),
        ({"auto_map": {"AutoConfig": "own.Own"}}, False, "^model.trust_remote_code: false, but"),
        ({}, True, "describes no model: .*`own`"),
    ],
)
def test_an_unknown_architecture(
    changes: dict[str, object], trust: bool, said: str, tmp_path: Path
) -> None:
    folder = configured(tmp_path, model_type="own", **changes)
    with pytest.raises(InputError, match=said):
        Checkpoint(folder, trust_remote_code=trust).config()
    if not trust:
        with pytest.raises(InputError, match=said):
            Checkpoint(folder).config()


def test_a_model_of_another_kind() -> None:
    with pytest.raises(InputError, match="architecture 't5' is not a decoder-only language model"):
        meta_model(tiny_config("t5"))


def test_a_language_model_that_transformers_cannot_make() -> None:
    """It says why itself."""
    with pytest.raises(ValueError, match="flash_attention_nonesuch") as raised:
        meta_model(tiny_config("llama", attn_implementation="flash_attention_nonesuch"))
    assert not isinstance(raised.value, InputError)


@pytest.mark.parametrize("has_package", [False, True])
@pytest.mark.parametrize("has_file", [False, True])
def test_no_tokenizer(
    has_package: bool, has_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a package would help is said where one is missing, and needed."""
    configured(tmp_path)
    if has_file:
        (tmp_path / "tokenizer.model").write_bytes(b"no model")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: has_package or None if name == "sentencepiece" else find_spec(name),
    )
    said = f"{re.escape(str(tmp_path))} has no usable tokenizer: .* calibration=tokens needs none"
    if has_file and not has_package:
        said = "the tokenizer.model in .* needs a package: pip install sentencepiece"
    with pytest.raises(InputError, match=said):
        Checkpoint(tmp_path).tokenizer()


def test_weights_that_could_run_code_are_not_opened(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """Not either where the safetensors beside them have a name that transformers does not look
    for.
    """
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))
    weights = Checkpoint(folder).load(dtype="float32").state_dict()
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        Checkpoint(folder).load(dtype="float32")
