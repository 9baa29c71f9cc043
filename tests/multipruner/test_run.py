"""A run from Python: what the command leaves, and what its folder and its model say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

import multipruner
from pipelines.runs.saved_run import read_run
from pruning.export.transformers import register
from pruning.models.loaded_model import LoadedModel
from pruning.recovery.prepared import prepared
from pruning.scoring.masking import masked
from pruning.shape import ModelShape
from tests.conftest import tokens
from tests.documents import save_reader, save_tasks
from tests.multipruner.conftest import SEARCH, Prune
from tests.pipelines.command import run_command, searched, without_times
from tests.tiny_search import tiny_search

SAME_BYTES = [
    "shape.json",
    "pruning_config.json",
    "channel_order.safetensors",
    "trajectory.png",
    "shape.png",
]


def plain(path: Path, folder: Path) -> Any:
    """A JSON file of a run, without its times, its folder, and its run in MLflow."""
    found = json.loads(path.read_text().replace(str(folder), "FOLDER"))
    for name in ("seconds", "started", "tracking", "mlflow_run_id"):
        found.pop(name, None)
    found.get("taken", {}).pop("tflops_per_evaluator", None)
    return found


def test_prune_leaves_the_files_of_the_command(
    prune: Prune, checkpoint_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    run = prune(output_dir=tmp_path / "run")
    other = tmp_path / "command"
    command = searched(other, *tiny_search(checkpoint_folder, token_file))
    assert run.folder == tmp_path / "run"
    names = {path.name for path in run.folder.iterdir()}
    assert names == {path.name for path in command.folder.iterdir()}
    for name in SAME_BYTES:
        assert (run.folder / name).read_bytes() == (command.folder / name).read_bytes(), name
    assert without_times(run.folder / "trajectory.jsonl") == command.trajectory
    for name in ("summary.json", "run.json"):
        assert plain(run.folder / name, tmp_path) == plain(command.folder / name, other), name
    config = (run.folder / "config.yaml").read_text().replace(str(tmp_path), "FOLDER")
    assert config == (command.folder / "config.yaml").read_text().replace(str(other), "FOLDER")


def test_a_run_says_what_its_folder_says(prune: Prune) -> None:
    run = prune(output_dir="run")
    lines = [json.loads(line) for line in (run.folder / "trajectory.jsonl").open()]
    table = run.trajectory
    assert {"block", "mlp_channels", "attention_heads"} == set(table["stage"])
    assert table.index.tolist() == [line["step"] for line in lines]
    for name in ("nll", "perplexity", "ratio", "num_parameters", "shape", "seconds"):
        assert table[name].tolist() == [line[name] for line in lines], name
    assert table["candidates"].tolist() == [len(line["candidates"]) for line in lines]
    assert table["layer"].tolist() == [line["removed"]["layer"] for line in lines]
    narrowed = table[table["kind"] == "mlp_channels"]
    assert narrowed["remaining"].tolist() == [
        line["removed"]["mlp_channels"] for line in lines if line["stage"] == "mlp_channels"
    ]
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    assert run.shape == ModelShape.from_json(json.loads((run.folder / "shape.json").read_text()))
    assert run.plot()._repr_png_() == (run.folder / "trajectory.png").read_bytes()
    assert multipruner.open(run.folder) == multipruner.open("run") == run


def test_an_earlier_point_of_the_path_is_the_first_step_that_reaches_it(prune: Prune) -> None:
    run = prune(output_dir="run")
    first, second, *_, last = run.trajectory.itertuples()
    assert run.at(0.001).text == run.at(first.ratio).text == first.shape
    assert run.at(first.ratio + 1e-9).text == second.shape
    assert run.at(last.ratio) == run.shape
    for ratio in (0, -1, last.ratio + 1e-9, float("nan")):
        with pytest.raises(multipruner.InputError, match=r"^ratio: .*came to"):
            run.at(ratio)


@pytest.mark.parametrize("search", ["multipruner", "multipruner_compensated"])
def test_the_model_in_memory_computes_what_was_scored_and_what_is_exported(
    prune: Prune, search: str
) -> None:
    """A compensated search's model is compensated."""
    run = prune(**{"search": search} | {f"search.{name}": value for name, value in SEARCH.items()})
    input_ids = tokens(2, 16)
    past = read_run(str(run.folder))
    dense = LoadedModel.of(past.checkpoint.load(dtype="float32"))
    before = dense.model(input_ids).logits
    scored = prepared(dense, past.order)
    assert (scored.compensation is None) == (search == "multipruner")
    with torch.no_grad(), masked(scored, past.shape):
        expected = dense.model(input_ids).logits
    logits = run.model(input_ids).logits
    assert not run.model.training
    assert sum(each.numel() for each in run.model.parameters()) < dense.model.num_parameters()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert (logits - before).abs().max() > 1e-2
    register()
    written = AutoModelForCausalLM.from_pretrained(run.export(), dtype="float32")
    torch.testing.assert_close(written(input_ids).logits, logits, rtol=1e-5, atol=1e-6)
    assert run.model is run.model, "it is loaded again"


def test_a_run_is_recovered_as_by_the_command(prune: Prune) -> None:
    run, input_ids = prune(output_dir="run"), tokens(2, 16)
    before = run.model(input_ids).logits
    settings = {
        "steps": 4,
        "batch_size": 2,
        "sequence_length": 32,
        "num_heldout_sequences": 8,
        "warmup_steps": 1,
        "rank": 2,
        "checkpoint_every": 2,
    }
    recovered = run.recover(recovery=settings)
    words = [f"recovery.{name}={value}" for name, value in settings.items()]
    command = run_command("recover", f"run={run.folder}", *words, "output_dir=command")
    assert command.status == 0, command.output
    for name in ("adapters.safetensors", "recovery.json"):
        assert (recovered.folder / name).exists()
    made = [folder / "adapters.safetensors" for folder in (recovered.folder, command.folder)]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert recovered.folder == run.folder / "recovery"
    assert recovered.shape == run.shape
    assert recovered.summary == run.summary
    assert (recovered.model(input_ids).logits - before).abs().max() > 1e-4
    torch.testing.assert_close(multipruner.open(run.folder).model(input_ids).logits, before)
    opened = multipruner.open(recovered.folder)
    assert opened == recovered
    torch.testing.assert_close(opened.model(input_ids).logits, recovered.model(input_ids).logits)
    with pytest.raises(multipruner.InputError, match="is a recovery already"):
        recovered.recover(output_dir="again")


def test_a_run_is_measured_and_written_as_by_the_commands(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    reader = save_reader(tmp_path / "reader")
    data_dir = save_tasks(tmp_path / "tasks")
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, tmp_path / "t.safetensors")
    given = tiny | {"calibration.path": "t.safetensors", "search": SEARCH}
    run = multipruner.prune(reader, target=0.25, output_dir="run", **given)
    assert run.tokenizer("the cat")["input_ids"] == [84, 72, 69, 221, 67, 65, 84]
    report = run.evaluate(
        tasks=["piqa"], cluster="inline", evaluation={"data_dir": data_dir, "cost": False}
    )
    assert list(report["tasks"]) == ["piqa"]
    assert report == json.loads((run.folder / "evaluation.json").read_text())
    command = run_command(
        "evaluate",
        f"run={run.folder}",
        "evaluation.tasks=[piqa]",
        "evaluation.cost=false",
        f"evaluation.data_dir={data_dir}",
        "cluster=inline",
        f"output_dir={tmp_path}/measured",
    )
    assert command.evaluation["tasks"] == report["tasks"]
    folder = run.export("transformers", dtype="bfloat16", output_dir=tmp_path / "exported")
    assert folder == tmp_path / "exported"
    manifest = json.loads((folder / "multipruner.json").read_text())
    assert (manifest["dtype"], manifest["status"]) == ("bfloat16", "verified")
    with pytest.raises(multipruner.InputError, match=r"^format: 'ggml'"):
        run.export("ggml")


def test_a_search_that_was_stopped_is_read_and_gone_on_with(
    prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prune(output_dir="whole")
    stopped = prune(output_dir="stopped")
    lines = (stopped.folder / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (stopped.folder / "trajectory.jsonl").write_text("".join(lines[:2]))
    for name in ("summary.json", "trajectory.png"):
        (stopped.folder / name).unlink()
    run = multipruner.open("stopped")
    assert isinstance(run, multipruner.Run)
    assert run.summary is None
    assert len(run.trajectory) == 2
    with pytest.raises(multipruner.InputError, match=r"^run: no trajectory\.png in .*at its end"):
        run.plot()
    again = multipruner.prune(resume=True, output_dir="stopped")
    assert again == run
    assert without_times(again.folder / "trajectory.jsonl") == without_times(
        whole.folder / "trajectory.jsonl"
    )


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(multipruner.InputError, match=r"^run: .* has no run\.json"):
        multipruner.open(tmp_path)
