from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils.logging import get_verbosity

from pruning.errors import InputError
from pruning.models.checkpoint import Checkpoint
from pruning.models.find import find_checkpoint
from pruning.models.stored_weights import (
    check_finite,
    indexed_files,
    loaded_files,
    stored_dtype,
    weight_files,
)


def without(folder: Path, copied: Path, *names: str) -> Path:
    """A copy that lacks these tensors."""
    shutil.copytree(folder, copied)
    weights = load_file(copied / "model.safetensors")
    rest = {name: tensor for name, tensor in weights.items() if name not in names}
    save_file(rest, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


def test_weights_are_checked_without_room_for_them(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for those that are missing; and transformers says nothing of its own."""
    devices, verbosities = set(), []
    from_pretrained = PreTrainedModel.from_pretrained.__func__

    def seen(kind: type, *words: object, **options: Any) -> Any:
        verbosities.append(get_verbosity())
        model, found = from_pretrained(kind, *words, **options)
        for tensor in (*options["state_dict"].values(), *model.parameters()):
            devices.add(tensor.device.type)
        return model, found

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(seen))
    before = get_verbosity()
    find_checkpoint(str(checkpoint_folder)).check_weights()
    folder = without(checkpoint_folder, tmp_path / "lacking", "model.norm.weight")
    with pytest.raises(InputError, match=r"model\.norm\.weight is missing, expected \[48\]\. Use"):
        Checkpoint(folder).check_weights()
    assert devices == {"meta"}
    assert verbosities == [logging.ERROR, logging.ERROR]
    assert get_verbosity() == before < logging.ERROR


@pytest.mark.parametrize(("num_missing", "more"), [(3, ""), (4, "; and 1 more")])
def test_three_tensors_that_do_not_fit_are_named(
    num_missing: int, more: str, checkpoint_folder: Path, tmp_path: Path
) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(num_missing)]
    folder = without(checkpoint_folder, tmp_path / "lacking", *names)
    with pytest.raises(InputError) as raised:
        Checkpoint(folder).check_weights()
    named = "; ".join(f"{name} is missing, expected [48, 48]" for name in names[:3])
    assert f" do not fit its config.json: {named}{more}. Use" in str(raised.value)


def test_weights_of_another_size_or_type_do_not_fit(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for changed, said in (
        (weights[name][:40].clone(), rf"{name} is \[40, 48\], expected \[48, 48\]\. Use"),
        (weights[name].to(torch.float8_e5m2), rf"are quantized \({name} is F8_E5M2\)"),
    ):
        save_file(weights | {name: changed}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=said):
            Checkpoint(folder).check_weights()


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    """transformers loads one file; else those that the index names, there or not; else all."""
    above, below = tmp_path / "a.safetensors", tmp_path / "shards" / "b.safetensors"
    below.parent.mkdir()
    for path in (above, below):
        path.touch()
    assert indexed_files(tmp_path) == []
    assert loaded_files(tmp_path) == weight_files(tmp_path) == [above]
    named = {"x": "shards/b.safetensors", "y": "shards/none.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert indexed_files(tmp_path) == [below, below.with_name("none.safetensors")]
    assert loaded_files(tmp_path) == indexed_files(tmp_path)
    assert weight_files(tmp_path) == [above, below]
    single = tmp_path / "model.safetensors"
    single.touch()
    assert loaded_files(tmp_path) == [single]
    assert weight_files(tmp_path) == [above, single]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], ""),
        (
            ["b.pt", "a.bin"],
            " (it has a.bin, b.pt, which could run code when opened: convert them to safetensors "
            "first)",
        ),
    ],
)
def test_a_folder_without_safetensors(others: list[str], said: str, tmp_path: Path) -> None:
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(InputError) as raised:
        loaded_files(tmp_path)
    assert str(raised.value) == f"model.path: no *.safetensors in {tmp_path}{said}"


def test_an_index_that_names_no_file_of_the_folder(tmp_path: Path) -> None:
    outside = "which is outside of the folder"
    for named, said in (
        ({}, "names no files"),
        ({"weight_map": ["a.safetensors"]}, "names no files"),
        ({"weight_map": {"x": "a.safetensors", "y": 1}}, "names no files"),
        ({"weight_map": {"x": "../a.safetensors"}}, rf"names \.\./a\.safetensors, {outside}"),
        ({"weight_map": {"x": "/a.safetensors"}}, rf"names /a\.safetensors, {outside}"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(named))
        with pytest.raises(InputError, match=said):
            indexed_files(tmp_path)


def test_the_stored_type_is_that_of_most_values(tmp_path: Path) -> None:
    """Not of most tensors."""
    norms = {f"norm{index}": torch.ones(2) for index in range(3)}
    for dtype in (torch.bfloat16, torch.float16):
        save_file(norms | {"up": torch.ones(3, 3, dtype=dtype)}, tmp_path / "a.safetensors")
        assert stored_dtype(tmp_path) == str(dtype).removeprefix("torch.")
    save_file({"down": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    assert stored_dtype(tmp_path) == "float32"


@pytest.mark.parametrize(
    ("weights", "found"), [({"up": torch.ones(2, dtype=torch.float64)}, "F64"), ({}, "none")]
)
def test_weights_of_another_type_are_refused(
    weights: dict[str, torch.Tensor], found: str, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=rf"are stored as {found}; expected one of F32, BF16, F16"):
        stored_dtype(tmp_path)


@pytest.mark.parametrize(
    ("num_wrong", "named"), [(1, "w0"), (3, "w0, w1, w2"), (4, "w0, w1, w2 and 1 more")]
)
def test_values_that_are_not_finite_are_named(num_wrong: int, named: str, tmp_path: Path) -> None:
    """Three of them. A tensor without values, and one of numbers, has nothing wrong."""
    wrong = {f"w{index}": torch.tensor([[torch.inf, torch.nan][index % 2]]) for index in range(4)}
    right = {"none": torch.zeros(0), "ids": torch.tensor([3]), "one": torch.ones(1)}
    path = tmp_path / "model.safetensors"
    save_file(right, path)
    check_finite(path)
    save_file(right | dict(list(wrong.items())[:num_wrong]), path)
    with pytest.raises(InputError) as raised:
        check_finite(path)
    assert f"NaN or infinite values in {named} of {path}; expected" in str(raised.value)
