"""One command: a model goes in, and out come its pruned shape, its numbers, and a checkpoint that
says both.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.export.manifest import check_folder
from tests.conftest import tiny_config, tiny_model
from tests.documents import save_reader, save_tasks
from tests.pipelines.conftest import Search


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
