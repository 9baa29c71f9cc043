"""Checkpoints that come with code of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.models.meta_model import meta_model
from tests.conftest import tiny_config, tiny_model

MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizer


class OwnConfig(LlamaConfig):
    model_type = "own"


class Own(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizer):
    def get_vocab(self):
        return {"a": 0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of another name. transformers keeps code that it has run: it differs each time."""
    folder = tmp_path / "own"
    config = tiny_config("llama")
    tiny_model(config).save_pretrained(folder)
    classes = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "Own"}
    own = {
        "model_type": "own",
        "auto_map": {name: f"modeling_own.{own}" for name, own in classes.items()},
    }
    (folder / "config.json").write_text(json.dumps(config.to_dict() | own, default=str))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["modeling_own.OwnTokenizer", None]}})
    )
    (folder / "modeling_own.py").write_text(f"{MODEL}# {tmp_path}\n")
    return folder


def test_it_runs_where_it_is_trusted(folder: Path) -> None:
    checkpoint = Checkpoint(folder, trust_remote_code=True)
    assert type(checkpoint.config()).__name__ == "OwnConfig"
    checkpoint.check_weights()
    assert type(checkpoint.load(dtype="float32")).__name__ == "Own"
    assert type(checkpoint.tokenizer()).__name__ == "OwnTokenizer"


def test_it_does_not_run_where_it_is_not_trusted(folder: Path) -> None:
    own = Checkpoint(folder, trust_remote_code=True).config()
    with pytest.raises(InputError, match="^model.trust_remote_code: false, but .* needs its own"):
        Checkpoint(folder).config()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        meta_model(own)
    assert type(meta_model(own, trust_remote_code=True)).__name__ == "Own"


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        (AutoConfig, lambda checkpoint: checkpoint.config()),
        (AutoTokenizer, lambda checkpoint: checkpoint.tokenizer()),
        (AutoModelForCausalLM, lambda checkpoint: checkpoint.load(dtype="float32")),
    ],
)
def test_nothing_of_a_folder_is_asked_of_the_hub(
    kind: type, use: Callable[[Checkpoint], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration may name code in another repository, which nobody has read."""
    asked = []

    def opened(*_: object, **options: object) -> None:
        asked.append(options["local_files_only"])
        raise ValueError("seen")

    if kind is AutoModelForCausalLM:
        monkeypatch.setattr(Checkpoint, "check_weights", lambda _: None)
    monkeypatch.setattr(kind, "from_pretrained", opened)
    with pytest.raises(ValueError, match="seen"):
        use(Checkpoint(folder, trust_remote_code=True))
    assert asked == [True]
