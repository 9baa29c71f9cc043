"""The command that exports: what a search left goes in, a verified folder comes out, mistakes are
found before any weight is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pruning.costs.accounting import Accounting
from pruning.export.authors_config import write_authors_config
from pruning.export.manifest import check_folder
from pruning.export.transformers import register
from pruning.importance.channel_order import ChannelOrder, channel_order, reorder
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.shape import ModelShape, Removal
from tests.conftest import tiny_config, tiny_model, tokens
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli

REMOVALS = [
    Removal("attention", 0, 0),
    Removal("mlp", 1, 0),
    Removal("mlp_channels", 2, 32),
    Removal("attention_heads", 3, 2),
]


@pytest.fixture
def searched(ended: Outcome) -> Path:
    """The folder of a search of the tiny model."""
    return ended.folder


def masked_logits(run: Path, checkpoint_folder: Path) -> torch.Tensor:
    dense = LoadedModel.of(Checkpoint(checkpoint_folder).load(dtype="float32"))
    reorder(dense, ChannelOrder.load(run / "channel_order.safetensors"))
    shape = ModelShape.from_json(json.loads((run / "shape.json").read_text()))
    with torch.inference_mode(), masked(dense, shape):
        return dense.model(tokens(), use_cache=False).logits


@pytest.mark.usefixtures("own_process")
def test_a_search_is_exported(searched: Path, cli: Cli, checkpoint_folder: Path) -> None:
    outcome = cli("export", f"run={searched}")
    assert outcome.status == 0, outcome.output
    assert "verified; README.md there says how to open it" in outcome.output
    manifest = check_folder(outcome.folder)
    summary = json.loads((searched / "summary.json").read_text())
    assert manifest["ratio"] == summary["ratio"]
    assert manifest["num_parameters"] == summary["num_parameters"]
    assert manifest["num_stored_parameters"] == summary["num_stored_parameters"]["pruned"]
    assert manifest["perplexity"] == summary["perplexity"]
    assert [step["step"] for step in manifest["trajectory"]] == list(
        range(1, len(summary["steps"]) + 1)
    )
    assert manifest["settings"]["search.target_ratio"] == 0.25
    assert (
        manifest["settings"]["model.fingerprint"]
        == manifest["model"]["fingerprint"]
        == Checkpoint(checkpoint_folder).fingerprint()
    )
    assert str(checkpoint_folder) not in (outcome.folder / "multipruner.json").read_text(), (
        "no path of this machine"
    )
    assert "sqlite" not in (outcome.folder / "multipruner.json").read_text()
    register()
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(outcome.folder)(tokens()).logits
    torch.testing.assert_close(
        logits, masked_logits(searched, checkpoint_folder), atol=1e-5, rtol=0
    )


def test_a_shape_file_is_exported_in_the_order_beside_it(
    searched: Path, cli: Cli, checkpoint_folder: Path
) -> None:
    first = cli("export", f"run={searched}", folder="first")
    second = cli(
        "export",
        f"shape={searched / 'shape.json'}",
        f"model={checkpoint_folder}",
        "max_shard_gb=0.00002",
        folder="second",
    )
    assert second.status == 0, second.output
    files = sorted(second.folder.glob("*.safetensors"))
    assert len(files) > 1
    again = {name: tensor for path in files for name, tensor in load_file(path).items()}
    whole = load_file(first.folder / "model.safetensors")
    assert set(again) == set(whole)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_configuration_of_the_authors_is_exported(
    cli: Cli, checkpoint_folder: Path, tmp_path: Path
) -> None:
    geometry = Accounting(Checkpoint(checkpoint_folder).config()).geometry
    shape = ModelShape.parse("0x48 3x0 3x32 2x48")
    config = write_authors_config(
        shape, geometry.dense, REMOVALS, channels_per_kv_head=geometry.channels_per_kv_head
    )
    (tmp_path / "pruning_config.json").write_text(json.dumps(config))
    outcome = cli(
        "export",
        f"shape={tmp_path / 'pruning_config.json'}",
        f"model.path={checkpoint_folder}",
        "importance=l1",
    )
    assert outcome.status == 0, outcome.output
    assert check_folder(outcome.folder)["shape"] == shape.text
    dense = LoadedModel.of(Checkpoint(checkpoint_folder).load(dtype="float32"))
    order = channel_order(dense, "l1")
    assert check_folder(outcome.folder)["channel_order"] == order.fingerprint


def test_a_shape_that_the_family_cannot_have_is_refused(cli: Cli, tmp_path: Path) -> None:
    tiny_model(tiny_config("starcoder2")).save_pretrained(tmp_path / "model")
    shape = tmp_path / "shape.json"
    words = (f"shape={shape}", f"model.path={tmp_path}/model", "importance=l1")
    shape.write_text(json.dumps(ModelShape.parse("3x48*3 3x32").to_json()))
    outcome = cli("export", *words)
    assert outcome.status == 2
    assert outcome.errors == [
        "error: shape: 3x48*3 3x32 narrows blocks, but the family 'starcoder2' is pruned by whole "
        "blocks only; keep each block whole or leave it out"
    ]
    shape.write_text(json.dumps(ModelShape.parse("3x48*3 3x0").to_json()))
    assert cli("export", *words).status == 0


def test_a_search_that_was_stopped_is_exported_as_far_as_it_came(searched: Path, cli: Cli) -> None:
    (searched / "summary.json").unlink()
    lines = (searched / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (searched / "trajectory.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    outcome = cli("export", f"run={searched}")
    assert outcome.status == 0, outcome.output
    assert "has not ended: this is its shape after 2 steps" in outcome.output
    assert check_folder(outcome.folder)["shape"] == json.loads(lines[1])["shape"]


def test_without_output_dir_it_goes_into_the_folder_of_the_search(searched: Path, cli: Cli) -> None:
    assert cli("export", f"run={searched}", "output_dir=null").status == 0
    check_folder(searched / "transformers")
    again = cli("export", f"run={searched}", "output_dir=null")
    assert again.errors == [
        (
            f"error: output_dir: {searched / 'transformers'} is there already and not empty; give "
            "another folder"
        )
    ]


def test_all_mistakes_at_once(cli: Cli) -> None:
    outcome = cli("export", "format=onnx", "dtype=int4", "max_shard_gb=0", "tokenizer_gguf=x.gguf")
    assert outcome.status == 2
    assert [error.split(":")[1].strip() for error in outcome.errors] == [
        "format",
        "dtype",
        "run, shape",
        "model.path",
        "max_shard_gb",
        "tokenizer_gguf",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=RUN", "shape=x.json"], "run, shape: both are given"),
        (["run=RUN", "model.path=x"], r"model\.path: has no effect with run="),
        (["run=RUN", "importance=l1"], "importance: has no effect with run="),
        (
            ["run=RUN", "format=gguf", "max_shard_gb=2"],
            "max_shard_gb: 2, which has no effect with format=gguf",
        ),
        (
            ["run=RUN", "format=gguf", "++max_shard_gb=2"],
            "max_shard_gb: 2, which has no effect with format=gguf",
        ),
        (["run=RUN/nowhere"], r"run: .*nowhere has no run\.json, config\.yaml"),
        (["shape=x.json", "model.path=MODEL"], r"shape: cannot read x\.json"),
        (
            ["shape=x.json", "model.path=MODEL", "importance=activation"],
            "importance: 'activation'; with shape= one of l1, none",
        ),
        (
            ["shape=x.json", "model.path=MODEL", "model.dtype=float32"],
            r"model\.dtype: has no effect on an export; give dtype",
        ),
        (["shape=x.json", "model.path=MODEL", "output_dir=null"], "output_dir: missing"),
        (
            ["shape=SHORT", "model.path=MODEL"],
            "shape: .* does not fit this model: it has 3 layers, the model 4",
        ),
        (
            ["shape=WIDE", "model.path=MODEL"],
            (
                "shape: .* does not fit this model: layer 1 has 3 KV heads and 500 MLP channels, "
                "the "
                "model's have 3 and 48"
            ),
        ),
        (
            ["shape=NARROW", "model.path=MODEL"],
            r"importance: .* narrows blocks, and no channel_order\.safetensors lies beside it",
        ),
        (["shape=EMPTY", "model.path=MODEL"], "shape: 0x0.4 has no block left"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(
    searched: Path,
    cli: Cli,
    checkpoint_folder: Path,
    tmp_path: Path,
    overrides: list[str],
    message: str,
) -> None:
    shapes = {
        "SHORT": "3x48*3",
        "WIDE": "3x48 3x500 3x48*2",
        "NARROW": "3x32 3x48*3",
        "EMPTY": "0x0*4",
    }
    places = {"RUN": str(searched), "MODEL": str(checkpoint_folder)}
    for name, text in shapes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(ModelShape.parse(text).to_json()))
        places[name] = str(tmp_path / f"{name}.json")
    for name, place in places.items():
        overrides = [override.replace(f"={name}", f"={place}") for override in overrides]
    outcome = cli("export", *overrides)
    assert outcome.status == 2
    assert len(outcome.errors) == 1
    assert re.search(message, outcome.errors[0]), outcome.errors
    assert not outcome.folder.exists()


def test_a_model_that_has_changed_since(
    searched: Path, cli: Cli, checkpoint_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint_folder, moved)
    config = (searched / "config.yaml").read_text().replace(str(checkpoint_folder), str(moved))
    (searched / "config.yaml").write_text(config)
    assert cli("export", f"run={searched}", folder="first").status == 0, (
        "the same bytes elsewhere are the same model"
    )
    tensors = bytearray((moved / "model.safetensors").read_bytes())
    tensors[-1] ^= 1
    (moved / "model.safetensors").write_bytes(tensors)
    outcome = cli("export", f"run={searched}", folder="second")
    assert outcome.status == 2
    assert "is not the model that the search" in outcome.errors[0]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_disk_that_fills_up_leaves_nothing(
    searched: Path, cli: Cli, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is measured before; here it is taken afterwards."""
    monkeypatch.setattr("pruning.export.folder._check_room", lambda *_: None)
    (small_disk / "filler").write_bytes(b"0" * (1024 * 1024 - 60_000))
    outcome = cli("export", f"run={searched}", f"output_dir={small_disk / 'exported'}")
    assert outcome.status == 1
    assert "No space left on device" in outcome.errors[0]
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_orders_differ(searched: Path) -> None:
    """What the tests above rest on: the search sorted something."""
    order = ChannelOrder.load(searched / "channel_order.safetensors")
    assert not np.array_equal(order.mlp_channels[0], np.sort(order.mlp_channels[0]))
