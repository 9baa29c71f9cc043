"""Searches that cannot go on: the target is out of reach, or scores are no numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.pipelines.conftest import Search
from tests.tiny_search import DEAD_END

_TOO_LARGE = 3e38
"""Finite in float32, as weights must be; its products are not."""


def test_an_unreachable_target_keeps_everything(search: Search) -> None:
    outcome = search(*DEAD_END)
    assert outcome.status == 2
    assert "stage 'mlp_channels' has no candidate left at ratio 0.5" in outcome.output.replace(
        "\n", " "
    )
    assert len(outcome.trajectory) > 4
    assert "no candidate left" in outcome.summary["status"]
    assert all(
        (outcome.folder / name).exists()
        for name in ("shape.json", "pruning_config.json", "trajectory.png", "shape.png")
    )
    again = search(*DEAD_END)
    assert again.status == 2
    assert again.summary["evaluations"]["scored"] == 0


def test_a_target_that_no_path_reaches_is_refused(search: Search) -> None:
    outcome = search(
        "search.target_ratio=0.6", "search.distribution=[0,1,0]", "search.mlp_group_channels=24"
    )
    assert outcome.status == 2
    assert outcome.errors == [
        "error: search.target_ratio: 0.6; no path reaches it: the mlp_channels stage runs out of "
        "candidates; lower it, give that stage a smaller share in search.distribution, or use "
        "smaller groups"
    ]
    assert not outcome.folder.exists()


def _with_large_weights(folder: Path, path: Path, change: object) -> Path:
    copy = Path(shutil.copytree(folder, path))
    weights = load_file(copy / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_model_that_gives_nan_stops_with_the_cause(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    broken = _with_large_weights(
        checkpoint_folder,
        tmp_path / "overflow",
        lambda weights: weights["model.norm.weight"].fill_(_TOO_LARGE),
    )
    outcome = search(f"model.path={broken}")
    assert outcome.status == 1
    assert "the NLL of all 8 candidates is NaN or infinite" in outcome.output.replace("\n", " ")
    assert "Traceback" not in outcome.output


def test_a_candidate_that_gives_nan_is_out(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    """Layer 3's MLP overflows: in float16 that happens in real models."""

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.3.mlp.down_proj.weight"].fill_(_TOO_LARGE)

    broken = _with_large_weights(checkpoint_folder, tmp_path / "one-overflow", enlarge)
    outcome = search(
        f"model.path={broken}",
        "search.target_ratio=0.1",
        "search.distribution=[1,0,0]",
    )
    assert outcome.status == 0, outcome.output
    first = json.loads((outcome.folder / "trajectory.jsonl").read_text().splitlines()[0])
    assert first["removed"] == {"kind": "mlp", "layer": 3, "mlp_channels": 0}
    assert [candidate["nll"] is None for candidate in first["candidates"]] == [True] * 7 + [False]
    assert (
        "NaN or infinite score, out: attention block of layer 0, attention block of layer 1"
        in outcome.output.replace("\n", " ")
    )
    assert (
        search(
            f"model.path={broken}",
            "search.target_ratio=0.1",
            "search.distribution=[1,0,0]",
        ).summary["evaluations"]["scored"]
        == 0
    )
