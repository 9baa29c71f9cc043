"""The authors' own program on a small real model: every removal, every candidate's perplexity."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.costs.accounting import Accounting
from pruning.export.authors_config import write_authors_config
from pruning.importance.channel_order import channel_order, reorder
from pruning.models.find import find_checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.nll import run_prefix, score_candidates
from pruning.search.greedy import GreedySearch
from pruning.search.settings import SearchSettings
from pruning.shape import Removal
from tests.conftest import NEEDS_GPU


@pytest.mark.data
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_the_reference_trajectory(shared: Path, device: str) -> None:
    golden = json.loads((shared / "golden/stories260K_trajectory.json").read_text())
    ids = (
        load_file(shared / "golden/stories260K_calibration.safetensors")["input_ids"]
        .long()
        .to(device)
    )
    model = find_checkpoint(str(shared / "models/stories260K")).load(dtype="float32", device=device)
    accounting = Accounting(model.config)
    dense = LoadedModel.of(model)
    reorder(dense, channel_order(dense, "l1"))
    search = GreedySearch(
        accounting,
        SearchSettings.resolved(
            accounting.geometry,
            target_ratio=0.30,
            distribution=[35, 35, 30],
            mlp_group_channels=43,
            head_group_channels=16,
        ),
    )
    for reference in golden["steps"]:
        candidates = search.propose()
        assert [_as_reference(candidate) for candidate in candidates] == [
            candidate[:-1] for candidate in reference["candidates"]
        ]
        sequences = 16 if reference["stage"] == "block" else 8
        nll = torch.zeros(len(candidates), dtype=torch.float64)
        for start in range(0, sequences, 2):
            prefix = run_prefix(dense, search.shape, ids[start : start + 2])
            shapes = [search.shape.without(candidate) for candidate in candidates]
            nll += score_candidates(dense, prefix, shapes).sum(dim=1)
        scores = dict(zip(candidates, (nll / (sequences * 255)).tolist(), strict=True))
        for candidate, expected in zip(candidates, reference["candidates"], strict=True):
            assert math.exp(scores[candidate]) == pytest.approx(expected[-1], rel=1e-4)
        step = search.observe(scores)
        assert _as_reference(step.removal) == reference["removed"]
        assert step.stage == reference["stage"]
        assert 100 * step.ratio == pytest.approx(reference["ratio_percent"], rel=1e-9)
    assert search.done
    ours = write_authors_config(
        search.shape,
        accounting.dense,
        [step.removal for step in search.steps],
        channels_per_kv_head=16,
    )
    assert ours == golden["final"]


def _as_reference(removal: Removal) -> list[object]:
    """[kind, layer] of a block, [kind, layer, remaining channels] of a width; heads are counted in
    query channels there.
    """
    if removal.kind in ("attention", "mlp"):
        return [removal.kind, removal.layer]
    return [
        removal.kind,
        removal.layer,
        removal.remaining * 16 if removal.kind == "attention_heads" else removal.remaining,
    ]
