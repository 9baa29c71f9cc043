"""A search of a model that is in memory: what it leaves is that of a search of its folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import multipruner
from multipruner import InputError
from tests.documents import save_reader
from tests.multipruner.conftest import SEARCH
from tests.pipelines.command import without_times

Loaded = tuple[Any, Any]


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    return save_reader(tmp_path / "reader")


@pytest.fixture
def loaded(reader: Path) -> Loaded:
    """Model and tokenizer."""
    return AutoModelForCausalLM.from_pretrained(reader), AutoTokenizer.from_pretrained(reader)


Prune = Callable[..., multipruner.Run]


@pytest.fixture
def prune(tiny: dict[str, Any], tmp_path: Path) -> Prune:
    """`prune(model, tokenizer)` prunes on text, in the folder `run`."""
    (tmp_path / "text.txt").write_text("the old house and the red bird " * 300)
    of_tokens = ("calibration", "calibration.path")
    given = {name: value for name, value in tiny.items() if name not in of_tokens}

    def run(model: Any, tokenizer: Any = None, **changes: Any) -> multipruner.Run:
        defaults = {"text": "text.txt", "target": 0.25, "output_dir": "run", "search": SEARCH}
        options = given | defaults | changes
        return multipruner.prune(model, tokenizer=tokenizer, **options)

    return run


def test_it_is_pruned_as_its_folder_is(prune: Prune, loaded: Loaded, reader: Path) -> None:
    run, other = prune(*loaded), prune(reader, output_dir="other")
    for name in ("shape.json", "channel_order.safetensors", "shape.png"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    trajectories = [without_times(each.folder / "trajectory.jsonl") for each in (run, other)]
    assert trajectories[0] == trajectories[1]
    assert run.summary is not None
    assert other.summary is not None
    assert run.summary["model"] == "reader"
    assert run.summary["samples"] == other.summary["samples"]
    folder = run.folder / "dense_model" / "reader"
    written = AutoModelForCausalLM.from_pretrained(folder)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            written.state_dict().values(), loaded[0].state_dict().values(), strict=True
        )
    )
    assert run.tokenizer("the cat")["input_ids"] == [84, 72, 69, 221, 67, 65, 84]
    assert (run.export() / "tokenizer.json").exists()
    assert run.model.num_parameters() < loaded[0].num_parameters()


def test_it_keeps_its_type(prune: Prune, loaded: Loaded) -> None:
    run = prune(loaded[0].to(torch.bfloat16), loaded[1])
    written = AutoModelForCausalLM.from_pretrained(
        run.folder / "dense_model" / "reader", dtype="auto"
    )
    assert written.dtype == torch.bfloat16


def test_without_a_folder_it_gets_a_new_one(prune: Prune, loaded: Loaded, tmp_path: Path) -> None:
    run = prune(*loaded, output_dir=None)
    assert run.folder.parent.parent == tmp_path / "outputs"
    assert (run.folder / "dense_model" / "reader" / "model.safetensors").exists()


def test_a_stopped_search_goes_on_with_the_copy(prune: Prune, loaded: Loaded) -> None:
    """With the same model, whether or not it is given with the tokenizer again."""
    run = prune(*loaded)
    journal, copied = (
        run.folder / "trajectory.jsonl",
        run.folder / "dense_model/reader/model.safetensors",
    )
    whole, before = without_times(journal), copied.stat()
    for again in (
        lambda: multipruner.prune(loaded[0], tokenizer=loaded[1], resume=True, output_dir="run"),
        lambda: multipruner.prune(loaded[0], resume=True, output_dir="run"),
        lambda: multipruner.prune(resume=True, output_dir="run"),
        lambda: prune(*loaded),
    ):
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
        assert again() == run
        assert without_times(journal) == whole
        assert (copied.stat().st_ino, copied.stat().st_mtime) == (before.st_ino, before.st_mtime)
    assert [path.name for path in (run.folder / "dense_model").iterdir()] == ["reader"]


def test_a_tokenizer_that_was_used_is_the_same(prune: Prune, loaded: Loaded) -> None:
    """Padding and truncation stay in the files of a tokenizer."""
    model, tokenizer = loaded
    run = prune(model, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["the old house", "the"], padding=True, truncation=True, max_length=2)
    assert prune(model, tokenizer) == run
    tokenizer.add_tokens(["<another>"])
    with pytest.raises(InputError, match=r"\(different: the tokenizer\)"):
        prune(model, tokenizer)


def test_a_search_that_cannot_begin_leaves_no_copy(
    prune: Prune, loaded: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="calibration"):
        prune(*loaded, calibration={"num_heldout_samples": 100_000, "sequence_length": 300})
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError):
        prune(*loaded, calibration={"sequence_length": 100_000})
    assert not (tmp_path / "run" / "dense_model").exists()
    run = prune(*loaded)
    with pytest.raises(InputError):
        prune(*loaded, calibration={"sequence_length": 100_000})
    assert (run.folder / "dense_model" / "reader" / "model.safetensors").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_another_model_is_refused(prune: Prune, loaded: Loaded, resume: bool) -> None:
    model, tokenizer = loaded
    run = prune(model, tokenizer)
    journal = (run.folder / "trajectory.jsonl").read_bytes()
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    resumed = partial(multipruner.prune, resume=True, output_dir="run")
    again = resumed if resume else prune
    said = r"dense_model/reader is a copy of another model .*\(different: model\.safetensors\)"
    with pytest.raises(InputError, match=rf"^output_dir: .*{said}"):
        again(model, tokenizer=tokenizer)
    assert (run.folder / "trajectory.jsonl").read_bytes() == journal


def test_the_folder_of_another_run_gets_no_copy(prune: Prune, loaded: Loaded, reader: Path) -> None:
    run = prune(reader)
    with pytest.raises(InputError, match=r"^output_dir: .* belongs to a run of another model"):
        prune(*loaded)
    assert not (run.folder / "dense_model").exists()


def test_a_folder_of_something_else_gets_no_copy(
    prune: Prune, loaded: Loaded, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"^output_dir: .* is not empty and not a run's folder"):
        prune(*loaded)
    assert [path.name for path in (tmp_path / "run").glob("[!.]*")] == ["thesis.txt"]


def test_wrong_options_are_said_before_it_is_written(
    prune: Prune, loaded: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^search\.target_ratio: 2; "):
        prune(*loaded, target=2)
    assert not (tmp_path / "run").exists()


def test_text_needs_a_tokenizer(
    prune: Prune, loaded: Loaded, tmp_path: Path, token_file: Path
) -> None:
    with pytest.raises(InputError, match=r"^tokenizer: missing, and calibration=text needs one"):
        prune(loaded[0])
    assert not (tmp_path / "run").exists()
    of_tokens = {"text": None, "calibration": {"source": "tokens", "path": token_file}}
    measured = {"evaluation": {"texts": ["text.txt"]}}
    with pytest.raises(InputError, match=r"^tokenizer: missing, and evaluation needs one"):
        prune(loaded[0], **measured, **of_tokens)
    run = prune(loaded[0], **of_tokens)
    assert run.summary is not None
    assert "samples" not in run.summary


def test_a_tokenizer_is_for_a_loaded_model(prune: Prune, loaded: Loaded, reader: Path) -> None:
    with pytest.raises(InputError, match=r"^tokenizer: given without a loaded model"):
        prune(reader, loaded[1])
    with pytest.raises(InputError, match=r"^tokenizer: a value of type str; give a tokenizer of"):
        prune(loaded[0], "gpt2")


class Custom(LlamaForCausalLM):
    """A class that AutoModelForCausalLM does not know."""


def exchanged(model: Any) -> Any:
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(48, 40, bias=False)
    return model


def quantized(model: Any) -> Any:
    model.config.quantization_config = {"quant_method": "fp8"}
    return model


def on_meta(model: Any) -> Any:
    model.model.layers[1].to("meta")
    return model


def adapted(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def with_adapter(model: Any) -> Any:
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    return model


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "custom": (lambda model: Custom(model.config), r"a .*\.Custom, and AutoModelForCausalLM makes"),
    "headless": (lambda model: AutoModel.from_config(model.config), r"a .*LlamaModel, and AutoMod"),
    "exchanged": (exchanged, r"model\.layers\.0\.mlp\.up_proj\.weight is other than its config"),
    "quantized": (quantized, r"its weights are quantized"),
    "meta": (on_meta, r"model\.layers\.1\..* and 6 more tensors are on the meta device"),
    "peft": (adapted, r"has adapters of PEFT.*merge_and_unload"),
    "adapter": (with_adapter, r"has adapters of PEFT.*merge_and_unload"),
    "module": (lambda model: torch.nn.Linear(2, 2), r"a value of type Linear; give a folder"),
    "number": (lambda model: 7, r"a value of type int; give a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_open_as_the_same_model_is_refused(
    prune: Prune, loaded: Loaded, tmp_path: Path, name: str
) -> None:
    make, said = REFUSED[name]
    model = make(copy.deepcopy(loaded[0]))
    with pytest.raises(InputError, match=rf"^model: {said}"):
        prune(model, loaded[1])
    assert not (tmp_path / "run").exists()


def test_merged_adapters_are_part_of_it(prune: Prune, loaded: Loaded) -> None:
    model = adapted(copy.deepcopy(loaded[0]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    run = prune(model.merge_and_unload(), loaded[1])
    [copied] = (run.folder / "dense_model").iterdir()
    written = AutoModelForCausalLM.from_pretrained(copied).model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(written, loaded[0].model.layers[0].self_attn.q_proj.weight)
    assert json.loads((copied / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_what_transformers_will_not_write_is_said(
    prune: Prune, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise ValueError("the generation config is invalid\nmore")

    monkeypatch.setattr(loaded[0], "save_pretrained", refuses)
    with pytest.raises(InputError, match=r"^model: cannot be saved: the generation config is inv"):
        prune(*loaded)
    loose = Path("run")
    assert not (loose / "dense_model").exists()
    assert [path.name for path in loose.iterdir()] in ([], [".lock"])
