"""One command: a model goes in, and out come its pruned shape, its numbers, and a checkpoint that
says both.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from pruning.export.manifest import check_folder
from tests.conftest import tiny_config, tiny_model
from tests.documents import save_reader, save_tasks
from tests.pipelines.conftest import Cli, Search
from tests.pipelines.recover.conftest import QUICK

TRAINED = ("recovery=lora", *QUICK, "recovery.loss=nll")


@pytest.fixture
def whole(tmp_path: Path) -> list[str]:
    model, data = save_reader(tmp_path / "reader"), save_tasks(tmp_path / "data", 4)
    return [
        f"model.path={model}",
        "evaluation=zero_shot",
        "evaluation.tasks=[piqa]",
        f"evaluation.data_dir={data}",
        "evaluation.cost=false",
        "export=transformers",
    ]


def test_search_evaluation_export(
    search: Search, whole: list[str], monkeypatch: pytest.MonkeyPatch, hashed: list[Path]
) -> None:
    outcome = search(*whole)
    assert outcome.status == 0, outcome.output
    assert len(hashed) == 1, "evaluation and export get the model that the search has"
    report = json.loads((outcome.folder / "evaluation.json").read_text())
    manifest = check_folder(outcome.folder / "transformers")
    assert report["shape"] == manifest["shape"] == outcome.summary["shape"]
    assert manifest["evaluation"]["tasks"]["piqa"]["acc"] == report["tasks"]["piqa"]["acc"]
    card = (outcome.folder / "transformers" / "README.md").read_text()
    assert (
        f"| piqa, acc (4 documents) | {report['dense']['tasks']['piqa']['acc']:.4f} | "
        f"{report['tasks']['piqa']['acc']:.4f} ±"
    ) in card

    monkeypatch.setattr(
        "pipelines.prune.pipeline.export_run", lambda *_: pytest.fail("it is there already")
    )
    again = search(*whole)
    assert again.status == 0, again.output
    assert json.loads((outcome.folder / "evaluation.json").read_text())["answers"] == {
        "computed": 0,
        "reused": sum(report["answers"].values()),
    }


def test_search_recovery_evaluation_export(
    search: Search, whole: list[str], hashed: list[Path], cli: Cli
) -> None:
    """What is measured and written is the trained model, as by the commands one after another."""
    words = [*whole, *TRAINED]
    outcome = search(*words)
    assert outcome.status == 0, outcome.output
    assert len(hashed) == 1, "all get the model that the search has"
    folder = outcome.folder / "recovery"
    assert not (outcome.folder / "evaluation.json").exists()
    report = json.loads((folder / "evaluation.json").read_text())
    recovery = json.loads((folder / "recovery.json").read_text())
    assert {"dense", "pruned"} <= report.keys()
    manifest = check_folder(folder / "transformers")
    assert report["shape"] == manifest["shape"] == outcome.summary["shape"]
    assert manifest["recovery"]["adapters"] == recovery["adapters"]
    alone = cli("recover", f"run={outcome.folder}", *TRAINED[1:], folder="alone")
    assert alone.status == 0, alone.output
    assert alone.read("recovery.json")["adapters"] == recovery["adapters"]
    lines = (outcome.folder / "prune.log").read_text().splitlines()
    assert any("evaluation" in line or "writing" in line for line in lines), "its own log goes on"

    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.safetensors"))}
    again = search(*words)
    assert again.status == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained again"


def test_a_recovery_goes_on_where_the_command_was_stopped(
    search: Search, whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*whole, *TRAINED]
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.prune.pipeline.recover_in_folder",
            lambda _: os.kill(os.getpid(), signal.SIGINT),
        )
        stopped = search(*words)
    assert stopped.status != 0
    assert (stopped.folder / "summary.json").exists()
    again = search(*words)
    assert again.status == 0, again.output
    manifest = check_folder(again.folder / "recovery" / "transformers")
    assert manifest["recovery"]["settings"]["loss"] == "nll"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recovery.rank=25"], "recovery.rank: 25, above the narrowest matrix that is left"),
        (["recovery.sequence_length=4096"], "recovery.sequence_length: 4096, above this model's"),
        (["recovery.num_sequences=100000"], "recovery.num_sequences"),
        (["recovery.loss=mse"], "recovery.loss: 'mse'; one of kl, nll"),
        (["cluster.num_gpus_per_evaluator=2"], "cluster.num_gpus_per_evaluator: 2"),
    ],
)
def test_what_a_recovery_would_refuse_is_refused_before_the_search(
    search: Search, whole: list[str], words: list[str], message: str
) -> None:
    given = [each for each in QUICK if each.split("=")[0] not in str(words)]
    outcome = search(*whole, "recovery=lora", *given, *words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output
    assert not (outcome.folder / "trajectory.jsonl").exists()


def test_whole_matrices_need_memory_for_what_the_search_leaves(
    search: Search, whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 bytes less for each parameter that it is to remove, of 80,400."""
    seen = list[int]()

    def refuse(_config: object, needed: int, _machine: object) -> list[str]:
        seen.append(needed)
        return ["recovery: refused"]

    monkeypatch.setattr("pipelines.recover.job.memory_problems", refuse)
    given = [each for each in QUICK if "rank" not in each]
    for ratio in (0.1, 0.3):
        outcome = search(*whole, "recovery=full", *given, f"search.target_ratio={ratio}")
        assert outcome.status == 2, outcome.output
    assert seen[0] - seen[1] == pytest.approx(20 * 0.2 * 80400, abs=1)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("sweep", ("search.target_ratio=[0.1,0.2]",), "a sweep trains nothing; recover a point"),
        ("reproduce", ("experiment=multipruner/llama2_7b_22",), "reproduce compares searches"),
    ],
)
@pytest.mark.parametrize(
    ("asked", "names"),
    [("recovery=lora", "recovery"), ("recovery.rank=8", "recovery.rank")],
    ids=["group", "option"],
)
def test_commands_that_train_nothing_say_so(
    cli: Cli, command: str, words: tuple[str, ...], message: str, asked: str, names: str
) -> None:
    outcome = cli(command, *words, asked)
    assert outcome.status == 2
    assert f"{names}: {message}" in outcome.output


def test_options_of_a_recovery_that_is_not_asked_for(search: Search, whole: list[str]) -> None:
    outcome = search(*whole, "recovery.rank=8")
    assert outcome.status == 2
    said = "recovery.rank: no effect without recovery=lora or recovery=full; give one, or leave out"
    assert said in outcome.output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.tasks=[piqq]", "piqq"),
        ("export=onnx", "export: 'onnx'; one of transformers, decilm, gguf"),
        ("evaluation.data_dir=/nowhere", "evaluation.data_dir"),
        (
            "evaluation.sequence_length=9999",
            "evaluation.sequence_length: 9999, above this model's context",
        ),
        (
            "evaluation={cost:true,cost_prompt_tokens:9999}",
            "evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: 9999 + 32",
        ),
        ("evaluation.cost_engines=[onnx]", "evaluation.cost_engines: 'onnx'; one of llama.cpp"),
        ("evaluation.cost_engines=[llama.cpp]", "it has no merges"),
    ],
    ids=["task", "format", "data", "window", "cost", "engine", "model of an engine"],
)
def test_what_would_fail_after_the_search_fails_before_it(
    search: Search, whole: list[str], override: str, message: str
) -> None:
    outcome = search(*whole, override)
    assert outcome.status == 2
    assert message in outcome.errors[0]
    assert not outcome.folder.exists()


def test_a_format_that_cannot_hold_the_model(search: Search, tmp_path: Path) -> None:
    tiny_model(tiny_config("qwen3")).save_pretrained(tmp_path / "qwen3")
    outcome = search(f"model.path={tmp_path / 'qwen3'}", "export=gguf")
    assert outcome.status == 2
    assert "transformers" in outcome.errors[0], "it names a format that can"
    assert not outcome.folder.exists()
