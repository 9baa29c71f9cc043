"""A GGUF read back without llama.cpp: what it computes, what it sees, and what is said of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers

from pruning.costs.accounting import Accounting
from pruning.errors import ExportError
from pruning.export import folder as folder_module
from pruning.export import gguf, read_gguf
from pruning.export.folder import Export, write_export
from pruning.export.manifest import check_folder
from pruning.export.read_gguf import GGUFModel, verify_read_back
from pruning.export.reference import reference_of
from pruning.export.source import ExportSource
from pruning.export.verify_transformers import probe_tokens
from pruning.importance.channel_order import channel_order
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.shape import ModelShape
from tests.conftest import tiny_model
from tests.pruning.export.gguf_models import MODELS, VOCAB, byte_level, config_of, source_of

TOLERANCE = 1e-5
IDS = probe_tokens(VOCAB, 256)
SHAPE = ModelShape.parse("0x48 2x0 1x16 3x5")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(folder)
    return folder


def logits_of(source: ExportSource, dtype: str) -> torch.Tensor:
    return reference_of(
        source.dense, source.shape, IDS, stored="float32", written=dtype, vectors="float32"
    ).logits


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_computes_what_the_masked_model_does(
    name: str, dtype: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    source = source_of(name, tokenizer_folder, dtype=getattr(torch, dtype))
    gguf.write(tmp_path, source)
    [path] = tmp_path.glob("*.gguf")
    found = verify_read_back(path, IDS, logits_of(source, dtype), TOLERANCE)
    assert found is not None
    assert found["difference"] <= TOLERANCE


@pytest.fixture
def written(tokenizer_folder: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A file, and what it must compute."""
    source = source_of("llama 3 rope", tokenizer_folder)
    gguf.write(tmp_path, source)
    return tmp_path / "model-f32.gguf", logits_of(source, "float32")


def test_every_tensor_counts(written: tuple[Path, torch.Tensor]) -> None:
    """Each one in turn is changed in the file by a tenth, but for zeros that stand in for a block,
    and their norms.
    """
    path, wanted = written
    whole = path.read_bytes()
    for entry in GGUFReader(path).tensors:
        values = entry.data.copy().ravel()
        if not values.any() or entry.name in ("blk.0.attn_norm.weight", "blk.1.ffn_norm.weight"):
            continue
        changed = bytearray(whole)
        start = int(entry.data_offset)
        changed[start : start + values.nbytes] = (values * 1.1).tobytes()
        path.write_bytes(changed)
        found = verify_read_back(path, IDS, wanted, TOLERANCE)
        assert found is not None
        assert found["difference"] > TOLERANCE, entry.name


def double(path: Path, setting: str) -> None:
    """Writes a number of the file anew, twice as large."""
    field = GGUFReader(path, "r+").fields[f"deci.{setting}"]
    field.parts[field.data[-1]][0] *= 2


@pytest.mark.parametrize("setting", ["rope.freq_base", "attention.layer_norm_rms_epsilon"])
def test_settings_count(written: tuple[Path, torch.Tensor], setting: str) -> None:
    path, wanted = written
    double(path, setting)
    found = verify_read_back(path, IDS, wanted, TOLERANCE)
    assert found is not None
    assert found["difference"] > TOLERANCE


def test_settings_that_do_not_fit_the_tensors_are_said(written: tuple[Path, torch.Tensor]) -> None:
    path, wanted = written
    double(path, "attention.head_count_kv")
    with pytest.raises(RuntimeError, match="but the settings of the file say"):
        verify_read_back(path, IDS, wanted, TOLERANCE)


def test_what_is_no_such_file_is_said(written: tuple[Path, torch.Tensor]) -> None:
    path, wanted = written
    whole = path.read_bytes()
    path.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="gguf cannot open"):
        verify_read_back(path, IDS, wanted, TOLERANCE)
    path.write_bytes(whole.replace(b"blk.2.ffn_gate.weight", b"blk.9.ffn_gate.weight"))
    with pytest.raises(RuntimeError, match=r"lacks the tensor blk\.2\.ffn_gate\.weight"):
        GGUFModel(path).logits(IDS)
    path.write_bytes(whole.replace(b"rope_freqs.weight", b"rope_other.weight"))
    with pytest.raises(RuntimeError, match=r"tensors without use: rope_other\.weight"):
        GGUFModel(path).logits(IDS)


@pytest.fixture
def export(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """An export in bfloat16, on a machine without llama.cpp."""
    monkeypatch.setattr(folder_module, "has_llama_cpp", lambda: False)
    dense = tmp_path / "dense"
    model = tiny_model(config_of("llama")).to(torch.bfloat16)
    model.save_pretrained(dense)
    byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(dense)
    checkpoint = Checkpoint(dense)
    described = {"model": {"name": "tiny", "hub_id": None, "fingerprint": "0"}}
    return Export(
        checkpoint,
        Accounting(checkpoint.config()),
        SHAPE,
        channel_order(LoadedModel.of(checkpoint.load(dtype="float32")), "l1"),
        "gguf",
        "auto",
        described,
        {"tokenizer_gguf": None},
    )


def test_without_llama_cpp_it_is_read_back(export: Export, tmp_path: Path) -> None:
    write_export(export, tmp_path / "out")
    manifest = check_folder(tmp_path / "out")
    assert manifest["status"] == "verified"
    assert manifest["verification"]["program"] == "gguf"
    assert manifest["verification"]["difference"] <= TOLERANCE
    assert manifest["verification"]["tolerance"] == TOLERANCE
    assert manifest["weight_files"] == ["model-bf16.gguf"]
    assert "read back with the gguf package" in (tmp_path / "out" / "README.md").read_text()


def test_without_llama_cpp_a_wrong_norm_is_seen(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path, source: ExportSource, **options: Any) -> int:
        norm = source.dense.layers[2].get_submodule("input_layernorm").get_parameter("weight")
        norm.data = norm.data * 1.01
        return gguf.write(folder, source, **options)

    form = dataclasses.replace(folder_module.FORMATS["gguf"], write=wrong)
    monkeypatch.setitem(folder_module.FORMATS, "gguf", form)
    with pytest.raises(ExportError, match="is not what the search found"):
        write_export(export, tmp_path / "out")


def test_a_file_that_nothing_computed_says_so_in_its_name(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        read_gguf.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000)
    )
    write_export(export, tmp_path / "out")
    manifest = check_folder(tmp_path / "out")
    assert manifest["status"] == "unverified"
    assert "llama.cpp is not installed" in manifest["verification"]
    assert manifest["weight_files"] == ["model-bf16-unverified.gguf"]
    assert (tmp_path / "out" / "model-bf16-unverified.gguf").is_file()
    assert "model-bf16-unverified.gguf" in (tmp_path / "out" / "README.md").read_text()
