"""Exported folders: opened by stock transformers in a fresh process, refused where they are not
whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.costs.accounting import Accounting
from pruning.errors import ExportError, InputError
from pruning.export import folder as folder_module
from pruning.export import reference
from pruning.export.folder import Export, write_export
from pruning.export.formats import FORMAT_NAMES
from pruning.export.manifest import check_folder, read_manifest
from pruning.export.source import ExportSource
from pruning.export.surgery import pruned_layers
from pruning.export.transformers import register, write
from pruning.export.verify_transformers import TOLERANCES, probe_tokens
from pruning.importance.channel_order import ChannelOrder, channel_order, reorder
from pruning.models.checkpoint import Checkpoint
from pruning.models.families import FAMILIES
from pruning.models.loaded_model import LoadedModel
from pruning.models.shards import write_shards
from pruning.shape import ModelShape
from tests.conftest import tiny_config, tiny_model
from tests.pruning.export.sources import masked_logits
from tests.pruning.export.stock_checks import TOLERANCE, check_opened, opened_by_stock

# Every difficulty at once: layer 0 without attention, a layer without MLP, one without both,
# narrowed MLPs, fewer KV groups, two halves that pair.
HARD = ModelShape.parse("0x48 2x0 0x0 1x16 3x0 0x5")
BLOCKS_ONLY = {"starcoder2": "0x48 3x0 0x0 3x48 3x0 0x48", "gpt_neox": "0x48 6x0 0x0 6x48 6x0 0x48"}


def six_layers(model_type: str) -> PreTrainedModel:
    changes: dict[str, object] = {"num_hidden_layers": 6}
    if model_type == "gemma3_text":
        changes["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    if model_type == "gpt_neox":
        changes["num_key_value_heads"] = 6
    return tiny_model(tiny_config(model_type, **changes))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a fresh process without our packages finds, by family."""
    root = tmp_path_factory.mktemp("exports")
    for model_type in (*FAMILIES, *BLOCKS_ONLY):
        model, folder = six_layers(model_type), root / model_type
        folder.mkdir()
        dense, accounting = LoadedModel.of(model), Accounting(model.config)
        shape = HARD if model_type in FAMILIES else ModelShape.parse(BLOCKS_ONLY[model_type])
        source = ExportSource(dense, shape, root, torch.float32)
        ids = probe_tokens(128, 256)
        logits = masked_logits(source, ids)
        save_file({"input_ids": ids, "logits": logits}, folder / "probe.safetensors")
        num_values = write(folder, source, max_shard_bytes=40_000)
        if model_type in FAMILIES:
            assert num_values == accounting.num_stored_parameters(shape)
    return opened_by_stock([root / name for name in (*FAMILIES, *BLOCKS_ONLY)], root)


@pytest.mark.parametrize("model_type", [*FAMILIES, *BLOCKS_ONLY])
def test_stock_transformers_opens_and_generates(
    results: dict[str, dict[str, Any]], model_type: str
) -> None:
    found = results[model_type]
    check_opened(found, code={"modeling_pruned.py"})
    assert found["class"].startswith("Pruned")
    assert found["config"].startswith("Pruned")
    assert found["num_layers"] == (4 if model_type in FAMILIES else 5), (
        "the empty layer is gone, and halves are paired where blocks follow one another"
    )


def test_halves_are_paired_only_where_that_is_the_same_function() -> None:
    text = "0x48 2x0 0x0 1x16 3x0 0x5"
    paired = pruned_layers(ModelShape.parse(text), pair=True)
    assert [
        (layer.attention, layer.mlp, layer.kv_heads, layer.mlp_channels) for layer in paired
    ] == [
        (None, 0, 0, 48),
        (1, None, 2, 0),
        (3, 3, 1, 16),
        (4, 5, 3, 5),
    ]
    assert len(pruned_layers(ModelShape.parse(text), pair=False)) == 5
    assert len(pruned_layers(ModelShape.parse("0x4 3x0"), pair=True)) == 2, (
        "an MLP before an attention is another function"
    )
    with pytest.raises(InputError, match="no block left"):
        pruned_layers(ModelShape.parse("0x0*3"), pair=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("dense")
    tiny_model(tiny_config("qwen2", num_hidden_layers=6)).save_pretrained(folder)
    return Checkpoint(folder)


def export_of(checkpoint: Checkpoint, **changes: Any) -> Export:
    accounting = Accounting(checkpoint.config())
    order = channel_order(LoadedModel.of(checkpoint.load(dtype="float32")), "l1")
    described = {
        "model": {"name": "tiny", "hub_id": "someone/tiny", "fingerprint": checkpoint.fingerprint()}
    }
    fields = {
        "shape": HARD,
        "order": order,
        "format": "transformers",
        "dtype": "auto",
        "description": described,
        "options": {},
    }
    return Export(checkpoint, accounting, **(fields | changes))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "pruned"
    write_export(export_of(checkpoint), target)
    return target


def test_the_manifest_says_everything(exported: Path, checkpoint: Checkpoint) -> None:
    manifest = check_folder(exported)
    assert manifest["status"] == "verified"
    assert (
        manifest["verification"]["difference"] <= manifest["verification"]["tolerance"] == TOLERANCE
    )
    assert manifest["model"]["fingerprint"] == checkpoint.fingerprint()
    assert manifest["shape"] == HARD.text
    assert manifest["layers"][3] == {"attention": 4, "mlp": 5, "kv_heads": 3, "mlp_channels": 5}
    tensors = load_file(exported / "model.safetensors")
    assert manifest["num_stored_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert set(manifest["files"]) == {path.name for path in exported.iterdir()} - {
        "multipruner.json"
    }
    card = (exported / "README.md").read_text()
    assert "base_model: someone/tiny" in card
    assert "trust_remote_code=True" in card
    assert f"{manifest['num_stored_parameters']:,} values" in card
    assert [path.name for path in exported.parent.iterdir()] == ["pruned"], (
        "nothing else is left beside it"
    )


def test_with_our_package_no_code_of_the_folder_runs(exported: Path) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert type(model).__module__ == "pruning.export.transformers"
    assert type(model).__name__ == "PrunedQwen2ForCausalLM"


def test_the_order_of_channels_is_what_decides_what_is_left(
    exported: Path, checkpoint: Checkpoint
) -> None:
    """The narrowed MLP holds the channels that came first in the order, as they are in the dense
    checkpoint.
    """
    order, dense = export_of(checkpoint).order, load_file(checkpoint.folder / "model.safetensors")
    kept = load_file(exported / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(
        kept, dense["model.layers.3.mlp.up_proj.weight"][order.mlp_channels[3, :16].tolist()]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types(checkpoint: Checkpoint, tmp_path: Path, dtype: str) -> None:
    description = write_export(export_of(checkpoint, dtype=dtype), tmp_path / "pruned")
    assert description["status"] == "verified"
    assert description["verification"]["tolerance"] == TOLERANCE
    assert {
        tensor.dtype for tensor in load_file(tmp_path / "pruned" / "model.safetensors").values()
    } == {getattr(torch, dtype)}


def norm_off_by_one_percent(folder: Path, source: ExportSource, **options: Any) -> int:
    num_values = write(folder, source, **options)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return num_values


@pytest.mark.parametrize(
    ("stored", "written"),
    [("bfloat16", "auto"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_a_small_error_is_seen_in_any_type(
    stored: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One norm of six layers is wrong by 1 %, which is less than 1 % of the logits."""
    model = tiny_model(tiny_config("llama", num_hidden_layers=6))
    model.to(getattr(torch, stored)).save_pretrained(tmp_path / "dense")
    export = export_of(Checkpoint(tmp_path / "dense"), dtype=written)
    right = write_export(export, tmp_path / "right")
    assert right["verification"]["difference"] <= right["verification"]["tolerance"] == TOLERANCE
    form = folder_module.FORMATS["transformers"]
    wrong = dataclasses.replace(form, write=norm_off_by_one_percent)
    monkeypatch.setitem(folder_module.FORMATS, "transformers", wrong)
    with pytest.raises(ExportError, match="is not what the search found"):
        write_export(export, tmp_path / "wrong")
    found = read_manifest(tmp_path / "wrong.bad")["verification"]
    assert TOLERANCE < found["difference"] < 0.01 < TOLERANCES["bfloat16"]


def test_without_room_for_float32_the_stored_type_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tiny_config("llama", num_hidden_layers=6)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    monkeypatch.setattr(reference.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    found = write_export(export_of(Checkpoint(tmp_path / "dense")), tmp_path / "pruned")
    assert found["verification"]["tolerance"] == TOLERANCES["bfloat16"]
    assert found["status"] == "verified"


def test_what_a_coarse_type_rounds_when_a_model_is_built_is_compared_in_float32(
    tmp_path: Path,
) -> None:
    """Gemma 3 scales embeddings by the square root of the hidden size, which is in no file: of 48
    6.9282 in float32 and 6.9375 in bfloat16.
    """
    six_layers("gemma3_text").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    checkpoint = Checkpoint(tmp_path / "dense")
    scale = checkpoint.load(dtype="bfloat16").get_buffer("model.embed_tokens.embed_scale")
    assert scale.item() == 6.9375
    found = write_export(export_of(checkpoint), tmp_path / "pruned")
    assert found["status"] == "verified"
    assert found["verification"]["difference"] <= found["verification"]["tolerance"] == TOLERANCE


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_the_dense_model_is_as_it_was_afterwards(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type)).to(torch.bfloat16)

    def tensors() -> dict[str, torch.Tensor]:
        return dict([*model.named_parameters(), *model.named_buffers()])

    before = {name: tensor.clone() for name, tensor in tensors().items()}
    shape = ModelShape.parse("0x48 2x0 1x16 3x5")
    found = reference.reference_of(
        LoadedModel.of(model), shape, probe_tokens(128, 256), stored="bfloat16", written="bfloat16"
    )
    assert (found.dtype, found.logits.dtype) == ("float32", torch.float32)
    for name, tensor in tensors().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


@pytest.mark.usefixtures("own_process")
def test_an_export_that_computes_something_else_is_marked_as_bad(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_order(folder: Path, source: ExportSource, **options: Any) -> int:
        stored = ChannelOrder.as_stored(source.dense.geometry)
        flipped = ChannelOrder(stored.kv_heads[:, ::-1].copy(), stored.mlp_channels[:, ::-1].copy())
        reorder(source.dense, flipped)
        return write(folder, source, **options)

    form = folder_module.FORMATS["transformers"]
    monkeypatch.setitem(
        folder_module.FORMATS, "transformers", dataclasses.replace(form, write=wrong_order)
    )
    with pytest.raises(ExportError, match=r"pruned\.bad is not what the search found"):
        write_export(export_of(checkpoint), tmp_path / "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned.bad"]
    with pytest.raises(InputError, match="marked as bad"):
        check_folder(tmp_path / "pruned.bad")


def test_nothing_is_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "thesis.tex").touch()
    with pytest.raises(InputError, match="output_dir: .* is there already and not empty"):
        write_export(export_of(checkpoint), tmp_path / "pruned")
    assert [path.name for path in tmp_path.rglob("*")] == ["pruned", "thesis.tex"]


def test_a_full_disk_is_seen_before(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(10, 9, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(
        InputError, match=r"output_dir: the weights take .* GB, .* has 0\.0 GB left"
    ):
        write_export(export_of(checkpoint), tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def tampered(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "missing":
        weights.unlink()
    elif how == "cut short":
        os.truncate(weights, weights.stat().st_size - 1)
    elif how == "changed weights":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif how == "changed code":
        (folder / "modeling_pruned.py").write_text(
            (folder / "modeling_pruned.py").read_text() + "\nimport os\n"
        )
    elif how == "another's manifest":
        manifest = json.loads((folder / "multipruner.json").read_text())
        manifest["files"]["config.json"]["sha256"] = "0" * 64
        (folder / "multipruner.json").write_text(json.dumps(manifest))
    elif how == "more files":
        (folder / "model-00002-of-00002.safetensors").write_bytes(weights.read_bytes())
    elif how == "no manifest":
        (folder / "multipruner.json").unlink()
    elif how == "damaged manifest":
        (folder / "multipruner.json").write_text("{")
    elif how == "newer manifest":
        (folder / "multipruner.json").write_text('{"manifest_version": 99, "files": {}}')


REASONS = {
    "missing": r"is incomplete: model\.safetensors of its \d files missing",
    "cut short": r"model\.safetensors is cut short: [\d,]+ of [\d,]+ bytes",
    "changed weights": r"model\.safetensors is not the file that multipruner\.json describes",
    "changed code": r"modeling_pruned\.py is not the file",
    "another's manifest": r"config\.json is not the file .* belongs to another model",
    "more files": (
        r"has model-00002-of-00002\.safetensors, which its multipruner\.json does not list"
    ),
    "no manifest": (
        r"no multipruner\.json, so it was not written by multipruner export; open "
        r"other models with model\.path="
    ),
    "damaged manifest": r"multipruner\.json is damaged",
    "newer manifest": r"has version 99, this program reads 1",
}


@pytest.mark.parametrize("how", REASONS)
def test_folders_that_are_not_whole_are_refused(exported: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    check_folder(folder)
    tampered(folder, how)
    with pytest.raises(InputError, match=r"^checkpoint: .*" + REASONS[how]):
        check_folder(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint: no folder"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_are_read_back_by_the_library(
    tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    tensors = [
        ("a", torch.randn(7, 5)[:3]),
        ("b", torch.randn(6, 4)[:, :2]),
        ("c", torch.tensor(3.0)),
        ("d", torch.arange(4)),
        ("e", torch.zeros(0, 3)),
    ]
    assert (
        write_shards(tmp_path, lambda: tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)
        == 15 + 12 + 1 + 4
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert list(read) == list("abcde") or len(files) > 1
    for name, tensor in tensors:
        assert torch.equal(read[name], tensor.to(dtype) if tensor.is_floating_point() else tensor)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        assert {
            tmp_path / file for file in json.loads(index.read_text())["weight_map"].values()
        } == set(files)


def test_every_format_has_a_name_that_options_know() -> None:
    assert tuple(folder_module.FORMATS) == FORMAT_NAMES
