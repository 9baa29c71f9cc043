"""Speed in llama.cpp, as a part of an evaluation."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines import engines
from pipelines.config.groups import EvaluationConfig
from pipelines.evaluate import measurement
from pipelines.runs.files import EVALUATION
from pipelines.runs.folder import RunFolder
from pipelines.sweep.sweep_run import _is_evaluated
from pruning.canonical_json import dump_json
from pruning.costs.engine_speed import EngineRuns
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import PYTHON_VARIABLE
from pruning.export import gguf
from tests.conftest import tokens
from tests.documents import save_reader, with_merges
from tests.pipelines.command import searched as a_search
from tests.pipelines.evaluate.conftest import Evaluate
from tests.pruning.export.llama_cpp import needs_llama_cpp
from tests.tiny_search import tiny_search

ENGINE = (
    "evaluation=none",
    "evaluation.cost_engines=[llama.cpp]",
    "evaluation.cost_rounds=1",
    "evaluation.data_dir=null",
)


@pytest.fixture
def model(reader: Path, tmp_path: Path) -> Path:
    """One that llama.cpp opens."""
    return with_merges(Path(shutil.copytree(reader, tmp_path / "reader")))


EVERYTHING = EvaluationConfig(
    tasks=["piqa"],
    num_fewshot=None,
    limit=3,
    data_dir=None,
    texts=["wikitext2"],
    max_windows=None,
    sequence_length=None,
    batch_size=1,
    max_length=None,
    dense=True,
    cost=True,
    cost_batch_size=1,
    cost_prompt_tokens=128,
    cost_new_tokens=32,
    cost_rounds=10,
    cost_engines=["llama.cpp"],
)


def test_nothing_to_measure_is_without_engines_too() -> None:
    assert EVERYTHING.wanted
    assert not EVERYTHING.nothing().wanted
    assert EVERYTHING.nothing().limit == 3


def test_a_point_of_an_earlier_version_is_measured_unless_an_engine_is_wanted(
    tmp_path: Path,
) -> None:
    settings = asdict(EVERYTHING)
    del settings["cost_engines"]
    with RunFolder(str(tmp_path)) as folder:
        folder.write(EVALUATION, dump_json({"settings": settings}))
        assert _is_evaluated(folder, replace(EVERYTHING, cost_engines=[]))
        assert not _is_evaluated(folder, EVERYTHING)


@needs_llama_cpp
def test_dense_and_pruned_side_by_side_in_files_that_are_gone_afterwards(
    run: Evaluate, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, tmp_path / "t.safetensors")
    searched = a_search(tmp_path, *tiny_search(model, tmp_path / "t.safetensors")).folder
    written, write = [], gguf.write

    def seen(folder: Path, source: gguf.ExportSource, **options: Path | None) -> int:
        written.append((folder.name, source.shape.text))
        return write(folder, source, **options)

    monkeypatch.setattr(engines.gguf, "write", seen)
    before = sorted(path.name for path in searched.iterdir())
    outcome = run(f"run={searched}", *ENGINE)
    assert outcome.status == 0, outcome.output
    report = outcome.evaluation
    assert report["cost"] is None
    (engine, found), *others = report["engines"].items()
    assert (engine, others) == ("llama.cpp", [])
    assert found["settings"] | {"seed": 0} == {
        "batch_size": 1,
        "prompt_tokens": 128,
        "new_tokens": 32,
        "rounds": 1,
        "seed": 0,
    }
    for role in ("dense", "pruned", "ratio"):
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            assert 0 < found[role][name]["lowest"] <= found[role][name]["median"]
    assert found["ratio"]["decode_tokens_per_s"]["median"] == pytest.approx(
        found["pruned"]["decode_tokens_per_s"]["median"]
        / found["dense"]["decode_tokens_per_s"]["median"]
    )
    assert written == [("dense", written[0][1]), ("pruned", report["shape"])]
    assert written[0][1] != report["shape"]
    assert re.search(r"in llama\.cpp +│ prefill tokens/s +│ +[\d,.]+ │ +[\d,.]+ │", outcome.output)
    left = {path.name for path in outcome.folder.iterdir() if path.name.startswith(".engine")}
    assert not left
    assert sorted(path.name for path in searched.iterdir()) == before


def crashed(*_: object, **__: object) -> None:
    raise RuntimeError("llama.cpp cannot run model-f32.gguf (it ended with -11): nothing")


def test_an_engine_that_fails_spoils_nothing_else(
    run: Evaluate, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "llama_cpp_runs", crashed)
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    (tmp_path / "evaluation/.engine-killed").mkdir(parents=True)
    words = ("evaluation.tasks=[piqa]", *ENGINE[1:3], "evaluation.cost=false")
    outcome = run(f"model.path={model}", *words)
    assert outcome.status == 0, outcome.output
    assert set(outcome.evaluation["tasks"]) == {"piqa"}
    [found] = outcome.evaluation["engines"].values()
    assert found["problem"].startswith("llama.cpp cannot run model-f32.gguf")
    assert "the speed in llama.cpp is not known: llama.cpp cannot run" in outcome.output
    assert not list(outcome.folder.glob(".engine-*")), "nor what an earlier process left"


def test_no_evaluator_starts_for_an_engine_alone(
    run: Evaluate, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an evaluator starts")

    monkeypatch.setattr(measurement, "open_pool", refuse)
    monkeypatch.setattr(engines, "llama_cpp_runs", crashed)
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    outcome = run(f"model.path={model}", *ENGINE, "evaluation.cost=false")
    assert outcome.status == 0, outcome.output
    found = outcome.evaluation
    assert (found["device"], found["num_evaluators"]) == (None, 0)
    assert found["answers"] == {"computed": 0, "reused": 0}


def test_vllm_gets_the_family_where_that_can_hold_the_shape(
    run: Evaluate, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And DeciLM where not; both in the type of the weights, for as long as it takes."""
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, tmp_path / "t.safetensors")
    searched = a_search(tmp_path, *tiny_search(reader, tmp_path / "t.safetensors")).folder
    seen = {}

    def measured(folders: dict[str, Path], settings: SpeedSettings, **more: Any) -> Any:
        for role, folder in folders.items():
            seen[role] = json.loads((folder / "config.json").read_text())["model_type"]
        assert (settings.batch_size, settings.rounds, more["dtype"]) == (3, 1, "float32")
        assert more["num_threads"] == 1
        return EngineRuns("vLLM 0.1", "cpu", {role: [(1.0, 2.0)] for role in folders})

    monkeypatch.setattr(engines, "vllm_runs", measured)
    monkeypatch.setattr(engines, "vllm_python", lambda: "python")
    words = (*ENGINE, "evaluation.cost_engines=[vllm]", "evaluation.cost_batch_size=3")
    outcome = run(f"run={searched}", *words)
    assert outcome.status == 0, outcome.output
    assert seen == {"dense": "llama", "pruned": "nemotron-nas"}
    assert outcome.evaluation["engines"]["vllm"]["ratio"]["decode_tokens_per_s"]["median"] == 1
    assert re.search(r"in vllm +│ prefill tokens/s +│ +384\.0 │ +384\.0 │", outcome.output)
    assert not list(outcome.folder.glob(".engine-*"))


def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(
    run: Evaluate, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: False)
    outcome = run(f"model.path={model}", *ENGINE, "evaluation.cost_batch_size=2")
    assert outcome.status == 2, outcome.output
    assert [line.split(":")[1].strip() for line in outcome.errors] == [
        "evaluation.cost_engines",
        "evaluation.cost_batch_size",
    ]
    assert "llama.cpp is not installed here: pip install 'cyllama==0.2.*'" in outcome.errors[0]
    monkeypatch.undo()

    monkeypatch.setenv(PYTHON_VARIABLE, "/no/python")
    words = (*ENGINE, "evaluation.cost_engines=[vllm]", "evaluation.cost=false")
    outcome = run(f"model.path={model}", *words, "evaluation.cost_prompt_tokens=288", folder="vllm")
    assert outcome.status == 2, outcome.output
    context, python = outcome.errors
    assert "288 + 32 + 1 in vLLM, above this model's context of 320 tokens" in context
    assert f"evaluation.cost_engines: {PYTHON_VARIABLE}: cannot run /no/python: No such" in python
    monkeypatch.undo()

    other = save_reader(tmp_path / "other", "phi")
    outcome = run(f"model.path={other}", *ENGINE, folder="other")
    assert outcome.status == 2, outcome.output
    assert "evaluation.cost_engines: as with export format=gguf: " in outcome.output
    assert "'phi'" in outcome.output
