"""The command on the model from a seed, with the settings that the authors' own program had."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.pipelines.conftest import Search
from tests.seeded_model import golden, save_seeded, save_tokens


def test_the_command_finds_what_the_authors_program_found(search: Search, tmp_path: Path) -> None:
    settings = golden()["settings"]
    outcome = search(
        f"model.path={save_seeded(tmp_path / 'seeded-llama')}",
        f"model.dtype={settings['dtype']}",
        "calibration=tokens",
        f"calibration.path={save_tokens(tmp_path / 'tokens.safetensors')}",
        f"calibration.num_block_samples={settings['rows_block']}",
        f"calibration.num_width_samples={settings['rows_width']}",
        f"calibration.sequence_length={settings['seqlen']}",
        f"calibration.batch_size={settings['batch_size']}",
        f"search.target_ratio={settings['target_ratio_percent'] / 100}",
        f"search.distribution=[{settings['distribution'].replace(':', ',')}]",
        f"search.mlp_group_channels={settings['mlp_channel_group_size']}",
        f"search.head_group_channels={settings['attn_channel_group_size']}",
        "search.importance=l1",
        "cluster=inline",
        f"store.url=sqlite:///{tmp_path}/scores.db",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        bare=True,
    )
    assert outcome.status == 0, outcome.output
    ours = json.loads((outcome.folder / "pruning_config.json").read_text())
    assert ours == golden()["final"]
    assert outcome.summary["num_parameters"]["dense"] == golden()["total_params"]
    lines = [json.loads(line) for line in outcome.trajectory]
    for line, reference in zip(lines, golden()["steps"], strict=True):
        found = [candidate["nll"] for candidate in line["candidates"]]
        expected = [candidate[-1] for candidate in reference["candidates"]]
        assert line["stage"] == reference["stage"]
        assert [line["removed"]["kind"], line["removed"]["layer"]] == reference["removed"][:2]
        assert [math.exp(nll) for nll in found] == pytest.approx(expected, rel=5e-6)
        assert line["perplexity"] == pytest.approx(reference["perplexity"], rel=5e-6)
        assert 100 * line["ratio"] == pytest.approx(reference["ratio_percent"], rel=1e-12)
