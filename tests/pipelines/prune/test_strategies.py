"""Searches whose path does not depend on scores: the same driver, journal, store, MLflow, resume
and export as the greedy one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.numpy import load_file

from pipelines.runs.saved_run import read_run
from pruning.importance.block_influence import BlockInfluence, layer_similarity
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.search.fixed import random_path
from pruning.shape import ModelShape, Removal
from tests.pipelines.command import Outcome, without_times
from tests.pipelines.conftest import Search
from workers.cluster.machine import LocalMachine
from workers.pool.ray_pool import RayPool

BASELINES = ("search=shortgpt", "search=random")
BLOCKS = "search.distribution=[1,0,0]"


def removed(outcome: Outcome) -> list[Removal]:
    assert outcome.status == 0, outcome.output
    lines = [json.loads(line) for line in outcome.trajectory]
    assert all(
        line["stage"] == "block"
        and line["margin"] is None
        and line["candidates"][0]["nll"] == line["nll"]
        for line in lines
    )
    assert [line["evaluations"] for line in lines] == list(range(1, len(lines) + 1)), (
        "one candidate a step"
    )
    return [Removal.from_json(line["removed"]) for line in lines]


def test_shortgpt_removes_whole_layers_by_their_influence(
    search: Search, checkpoint_folder: Path, token_file: Path
) -> None:
    outcome = search("search=shortgpt", BLOCKS)
    found = removed(outcome)
    dense = LoadedModel.of(Checkpoint(checkpoint_folder).load(dtype="float32"))
    ids = torch.tensor(load_file(token_file)["input_ids"][:8])
    influence = BlockInfluence.of([layer_similarity(dense, batch) for batch in ids.split(4)])
    assert BlockInfluence.load(outcome.folder / "block_influence.json").values == pytest.approx(
        influence.values, rel=1e-5
    )
    path = [removal for group in influence.path for removal in group]
    assert found == path[: len(found)]
    assert len(found) % 2 == 0
    lines = [json.loads(line) for line in outcome.trajectory]
    assert lines[-1]["ratio"] >= 0.25 > lines[-3]["ratio"]
    assert outcome.summary["strategy"] == "block_influence"
    assert any(
        "strategy" in line and "block influence" in line for line in outcome.output.splitlines()
    )
    assert "shape.png, block_influence.json" in outcome.output


def test_random_goes_in_the_drawn_order(search: Search, tmp_path: Path) -> None:
    short, long, other = (
        search(
            "search=random",
            BLOCKS,
            f"search.target_ratio={ratio}",
            f"search.seed={seed}",
            folder=f"{seed}-{ratio}",
        )
        for seed, ratio in ((42, 0.2), (42, 0.4), (7, 0.2))
    )
    dense = ModelShape.dense(4, 3, 48)
    assert removed(long) == [removal for [removal] in random_path(dense, 42)][: len(removed(long))]
    assert long.trajectory[: len(short.trajectory)] == short.trajectory
    assert removed(other)[0] == random_path(dense, 7)[0][0]
    assert removed(other)[: len(removed(short))] != removed(short)
    assert not (short.folder / "block_influence.json").exists()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )
    assert {run.info.run_name for run in runs} == {
        "tiny-llama 20% random 42",
        "tiny-llama 40% random 42",
        "tiny-llama 20% random 7",
    }
    assert {run.data.params["resolved.search.seed"] for run in runs} == {"42", "7"}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kept", [1, 2])
def test_resumed_after_any_step(search: Search, baseline: str, kept: int) -> None:
    """Inside a layer too. What was measured before is read, or measured again if it is gone."""
    whole = search(baseline, BLOCKS, "search.target_ratio=0.45")
    assert whole.status == 0, whole.output
    text = (whole.folder / "trajectory.jsonl").read_text()
    influence = whole.folder / "block_influence.json"
    measured = influence.read_bytes() if influence.exists() else b""
    lines = text.splitlines(keepends=True)
    (whole.folder / "trajectory.jsonl").write_text("".join(lines[:kept]) + lines[kept][:40])
    if kept == 2:
        influence.unlink(missing_ok=True)
    resumed = search("resume=true", bare=True)
    assert resumed.status == 0, resumed.output
    assert f"going on after step {kept}" in resumed.output
    before = whole.folder.parent / "before.jsonl"
    before.write_text(text)
    assert resumed.trajectory == without_times(before)
    assert (influence.read_bytes() if influence.exists() else b"") == measured


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_journal_of_another_path_is_refused(search: Search, baseline: str) -> None:
    whole = search(baseline, BLOCKS)
    lines = [
        json.loads(line) for line in (whole.folder / "trajectory.jsonl").read_text().splitlines()
    ]
    for name in ("removed", "candidates"):
        lines[0][name] = lines[1][name]
    (whole.folder / "trajectory.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    again = search(baseline, BLOCKS)
    assert again.status == 2
    assert "step 1 of" in again.errors[0]
    assert "does not follow from its settings" in again.errors[0]


@pytest.mark.ray
@pytest.mark.parametrize("baseline", BASELINES)
def test_two_evaluators_give_the_same_bytes(
    search: Search,
    tmp_path: Path,
    local_cluster: LocalMachine,
    monkeypatch: pytest.MonkeyPatch,
    baseline: str,
) -> None:
    monkeypatch.setattr(RayPool, "wait", lambda self: iter([None for _ in self.describe()]))
    inline = search(baseline, BLOCKS, folder="inline")
    local = search(
        baseline,
        BLOCKS,
        "cluster=local",
        "cluster.num_evaluators=2",
        f"store.url=sqlite:///{tmp_path}/local.db",
        folder="local",
    )
    assert local.status == 0, local.output
    assert local.summary["num_evaluators"] == 2
    assert local.summary["evaluations"]["scored"] > 0
    assert local.trajectory == inline.trajectory
    if baseline == "search=shortgpt":
        assert (local.folder / "block_influence.json").read_bytes() == (
            inline.folder / "block_influence.json"
        ).read_bytes()


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_result_is_exported(search: Search, baseline: str) -> None:
    """The export opens itself in a fresh process and compares its logits."""
    outcome = search(baseline, BLOCKS, "export=transformers")
    assert outcome.status == 0, outcome.output
    manifest = json.loads((outcome.folder / "transformers/multipruner.json").read_text())
    assert (
        ModelShape.from_json(json.loads((outcome.folder / "shape.json").read_text()))
        == read_run(str(outcome.folder)).shape
    )
    assert outcome.summary["shape"] in json.dumps(manifest)


def test_blockpruner_is_the_greedy_search_of_blocks(search: Search) -> None:
    named, spelt = (
        search("search=blockpruner", BLOCKS, folder="named"),
        search(BLOCKS, folder="spelt"),
    )
    assert named.trajectory == spelt.trajectory
    assert named.summary["identity"] == spelt.summary["identity"]


def test_folders_from_before_there_was_a_choice_belong_to_the_greedy_search(
    ended: Outcome, search: Search
) -> None:
    identity = ended.summary["identity"]
    assert not {"search.strategy", "search.seed"} & set(identity)
    refused = search("search=random", BLOCKS)
    assert refused.status == 2
    assert "search.strategy: None there, random here" in refused.output


def test_the_seed_has_a_default(search: Search) -> None:
    by_group, by_hand = (
        search("search=random", BLOCKS, folder="group"),
        search("search.strategy=random", BLOCKS, folder="hand"),
    )
    assert by_group.summary["identity"] == by_hand.summary["identity"]
    assert by_hand.summary["identity"]["search.seed"] == 42


def test_deployable_keeps_the_first_and_the_last_layer(search: Search) -> None:
    for baseline in BASELINES:
        outcome = search(
            baseline,
            BLOCKS,
            "search.shape_constraint=deployable",
            "search.target_ratio=0.25",
            folder=baseline.partition("=")[2],
        )
        assert not {("attention", 0), ("mlp", 3)} & {
            (removal.kind, removal.layer) for removal in removed(outcome)
        }


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["search.strategy=shortgpt"],
            "search.strategy: 'shortgpt'; one of greedy, block_influence, random",
        ),
        (
            ["search=random"],
            (
                "search.distribution: [40, 40, 20], but search.strategy=random removes whole "
                "blocks "
                "only; use search.distribution=[1,0,0]"
            ),
        ),
        (
            ["search=shortgpt", "search.distribution=[9,1,0]"],
            "search.strategy=block_influence removes whole blocks only",
        ),
        (
            ["search.seed=3"],
            "search.seed: 3, which has no effect with search.strategy=greedy; it is for random",
        ),
        (
            ["search=shortgpt", BLOCKS, "search.seed=3"],
            "search.seed: 3, which has no effect with search.strategy=block_influence",
        ),
        (
            [
                "search=shortgpt",
                BLOCKS,
                "search.shape_constraint=deployable",
                "search.target_ratio=0.6",
            ],
            "search.target_ratio: 0.6; no path reaches it: the block stage runs out of candidates",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings_that_do_not_go_together(search: Search, overrides: list[str], says: Any) -> None:
    outcome = search(*overrides)
    assert outcome.status == 2, outcome.output
    assert says.replace("40, 40, 20", "40.0, 40.0, 20.0") in outcome.output.replace("\n", " ")
