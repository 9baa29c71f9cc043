"""What a predicted time was worth: the pruned model timed against the dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines import engines
from pipelines.prune import measured_latency
from pipelines.runs.timing import Timing
from pruning.costs.engine_speed import EngineRuns
from pruning.costs.latency import BlockTimes, LatencyTable, PhaseTimes, Seconds
from pruning.costs.target import Cost, Target
from pruning.export import gguf
from pruning.models.checkpoint import Checkpoint
from pruning.scoring.arithmetic import cpu_name, processor_name
from pruning.shape import ModelShape
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search
from tests.pruning.costs.tables import table

UNIFORM = (
    "search=uniform", "search.distribution=[0,1,0]", "search.mlp_group_channels=8",
    "search.target_ratio=null", "search.target.latency=0.05",
)  # fmt: skip
SIZES = {"kv_heads": {0: (0, 0), 3: (3, 4)}, "mlp_channels": {0: (0, 0), 48: (8, 6)}}


@pytest.fixture
def foreign(tmp_path: Path, checkpoint_folder: Path) -> Path:
    """A table of another device, by which an MLP takes most of the time."""
    found = table(**SIZES, fingerprint=Checkpoint(checkpoint_folder).fingerprint())
    found.save(tmp_path / "foreign.json")
    return tmp_path / "foreign.json"


def said(outcome: Outcome) -> str:
    return " ".join(outcome.output.split())


def test_measured_where_the_table_is_of_this_device(
    cli: Cli, search: Search, checkpoint_folder: Path
) -> None:
    words = (f"model.path={checkpoint_folder}", "model.dtype=float32", "cluster=inline")
    load = ("batch_size=2", "prompt_tokens=6", "new_tokens=3", "rounds=3", "widths=[24]")
    measured = cli("latency", *words, *load)
    assert measured.status == 0, measured.output
    path = measured.folder / "latency.json"
    times = LatencyTable.load(path)
    # so short a load is all noise: an MLP gets times by which it can be narrowed
    LatencyTable.save(replace(times, times=table(**SIZES).times), path)
    outcome = search(*UNIFORM, f"latency={path}")
    assert outcome.status == 0, outcome.output
    found, shape = outcome.summary["latency"]["measured"], outcome.summary["shape"]
    for phase in ("prefill", "decode"):
        each = found[phase]
        assert each["dense_seconds"] > 0
        assert each["pruned_seconds"] > 0
        assert each["ratio"]["lowest"] <= each["ratio"]["median"] <= each["ratio"]["highest"]
        pruned, dense = (
            LatencyTable.load(path).seconds(one, phase)
            for one in (ModelShape.parse(shape), ModelShape.dense(4, 3, 48))
        )
        assert each["predicted_ratio"] == pytest.approx(pruned / dense)
        assert each["standard_error"] == 0, "that of this table"
    assert "time of a batch, measured" in said(outcome)
    no = search(*UNIFORM, f"latency={path}", "measure_latency=false", folder="no")
    assert "measured" not in no.summary["latency"]


def test_a_table_of_another_device(search: Search, foreign: Path) -> None:
    outcome = search(*UNIFORM, f"latency={foreign}")
    assert outcome.status == 0, outcome.output
    assert "measured" not in outcome.summary["latency"]
    assert "the table is of another device (device: cpu of a test there, " in said(outcome)
    asked = search(*UNIFORM, f"latency={foreign}", "measure_latency=true", folder="asked")
    assert asked.status == 0, asked.output
    assert asked.summary["latency"]["measured"]["prefill"]["dense_seconds"] > 0


def test_a_measurement_that_fails_spoils_no_search(
    search: Search, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_latency, "SpeedEvaluator", None)
    outcome = search(*UNIFORM, f"latency={foreign}", "measure_latency=true")
    assert outcome.status == 0, outcome.output
    assert "latency: the pruned model could not be measured: " in said(outcome)
    assert outcome.summary["status"] == "target reached"


def test_a_table_of_an_engine_is_checked_in_that(
    search: Search, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes a second for the prefill of the dense model, and a half for the pruned one's."""
    asked: dict[str, Any] = {}

    def runs(
        engine: str, model: Any, shapes: Mapping[str, ModelShape], *words: Any, **more: Any
    ) -> Any:
        asked.update(more, engine=engine, model=model, shapes=shapes, settings=words[0])
        seconds = {"dense": [(1.0, 4.0)] * 3, "pruned": [(0.5, 2.0), (0.5, 3.0), (0.5, 4.0)]}
        return EngineRuns("engine 1", "device of a test", seconds)

    monkeypatch.setattr(measured_latency, "runs_in_engine", runs)
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    monkeypatch.setattr(gguf, "tokenizer_problems", lambda *_: [])
    fingerprint = Checkpoint(checkpoint_folder).fingerprint()
    found = table(**SIZES, fingerprint=fingerprint)
    found = replace(
        found, engine="llama.cpp", dtype="bfloat16", settings=replace(found.settings, batch_size=1)
    )
    found.save(tmp_path / "engine.json")
    words = (*UNIFORM, f"latency={tmp_path / 'engine.json'}")
    outcome = search(*words, "measure_latency=true")
    assert outcome.status == 0, outcome.output
    given = asked["model"]
    assert (asked["engine"], asked["settings"]) == ("llama.cpp", found.settings)
    assert (given.dtype, given.num_threads, given.tokenizer_gguf) == ("bfloat16", 1, None)
    assert {name: shape.text for name, shape in asked["shapes"].items()} == {
        "dense": ModelShape.dense(4, 3, 48).text,
        "pruned": outcome.summary["shape"],
    }
    assert asked["folder"] == outcome.folder
    measured = outcome.summary["latency"]["measured"]
    assert measured["device"] == "engine 1, device of a test"
    assert (measured["prefill"]["dense_seconds"], measured["prefill"]["pruned_seconds"]) == (1, 0.5)
    assert measured["decode"]["ratio"] == {"median": 0.75, "lowest": 0.5, "highest": 1}
    asked.clear()
    left = tmp_path / "other/.engine-killed"
    left.mkdir(parents=True)
    other = search(*words, folder="other")
    assert not left.exists()
    assert "measured" not in other.summary["latency"], "another device's"
    assert not asked


def test_an_engine_that_is_asked_for_is_there(
    search: Search, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is found before the search."""
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: False)
    fingerprint = Checkpoint(checkpoint_folder).fingerprint()
    replace(table(**SIZES, fingerprint=fingerprint), engine="llama.cpp").save(tmp_path / "e.json")
    words = (*UNIFORM, f"latency={tmp_path / 'e.json'}")
    outcome = search(*words, "measure_latency=true")
    assert outcome.status == 2
    assert "measure_latency: llama.cpp is not installed here" in said(outcome)
    assert "latency: 2; llama.cpp is measured with one sequence at a time" in said(outcome)
    assert search(*words, folder="without").status == 0


def test_an_engine_runs_beside_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device evaluators have, on whichever machines."""
    evaluators = {"device": "cuda NVIDIA", "processor": "", "num_threads": 1, "attention": "sdpa"}

    def job(engine: str, device: str, *, measure: bool | None = None, num_threads: int = 1) -> Any:
        computed = {"device": device, "processor": "", "num_threads": 1}
        if device.startswith("cpu"):
            computed["processor"] = processor_name()
        found = replace(table(**SIZES), engine=engine, arithmetic=computed)
        timing = Timing(Path("latency.json"), found, "f" * 32)
        cluster = SimpleNamespace(num_cpus_per_evaluator=num_threads)
        config = SimpleNamespace(measure_latency=measure, cluster=cluster)
        return SimpleNamespace(timing=timing, config=config)

    measured = measured_latency.is_measured
    assert measured(job("llama.cpp", cpu_name()), evaluators)
    assert not measured(job("transformers", cpu_name()), evaluators)
    assert not measured(job("llama.cpp", cpu_name(), num_threads=2), evaluators)
    assert not measured(job("llama.cpp", "cpu of a test"), evaluators)
    assert not measured(job("llama.cpp", cpu_name(), measure=False), evaluators)
    assert not measured(job("vllm", "cuda NVIDIA"), evaluators), "there is none here"
    assert measured(job("vllm", "cuda NVIDIA", measure=True), evaluators)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA")
    assert measured(job("vllm", "cuda NVIDIA"), evaluators)


@pytest.mark.parametrize(
    ("predicted", "error", "warns"),
    [(0.8, 0.0, False), (0.9, 0.0, True), (0.9, 0.03, False), (0.7, 0.01, True), (0.9, None, True)],
)
def test_a_warning_where_a_prediction_is_off(
    caplog: pytest.LogCaptureFixture, predicted: float, error: float | None, warns: bool
) -> None:
    """By more than twice its standard error, beside all that the rounds measured."""
    ratio = {"median": 0.8, "lowest": 0.75, "highest": 0.85}
    found = {"ratio": ratio, "predicted_ratio": predicted, "standard_error": error}
    measured_latency._warn("decode", found)
    assert ("0.800 are left as measured (0.750 to 0.850)" in " ".join(caplog.messages)) == warns


def test_the_error_of_a_predicted_ratio() -> None:
    """Blocks of one size are off together, those of several sizes by chance."""

    def times(seconds: float, error: float) -> PhaseTimes:
        each = Seconds(seconds, seconds, seconds, error)
        return PhaseTimes(each, each)

    blocks = BlockTimes(
        times(4, 0.4),
        {0: times(0, 0.0), 3: times(1, 0.1)},
        {0: times(0, 0.0), 24: times(2, 0.2), 48: times(4, 0.3)},
    )
    found = replace(table(**SIZES), times=blocks)
    dense, pruned = ModelShape.dense(2, 3, 48), ModelShape.parse("3x48 3x36")
    ratio = 13 / 14  # rest 4, attentions 2 x 1, MLPs 4 + 3
    assert found.seconds(pruned, "prefill") / found.seconds(dense, "prefill") == ratio
    errors = (
        0.4 * (1 - ratio),
        0.1 * (2 - 2 * ratio),
        0.3 * (1.5 - 2 * ratio),  # one whole, and half of what 36 channels lie between
        0.2 * 0.5,
    )
    assert found.ratio_error(pruned, dense, "prefill") == pytest.approx(math.hypot(*errors) / 14)
    assert found.ratio_error(dense, dense, "decode") == 0
    unknown = replace(found, times=replace(blocks, rest=times(4, None)))  # type: ignore[arg-type]
    assert unknown.ratio_error(pruned, dense, "prefill") is None


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("prune", ("measure_latency=true", "search.target.flops=0.1"), "no effect without latency"),
        ("sweep", ("measure_latency=true", "search.target.flops=[0.1]"), "which a sweep does not"),
    ],
)
def test_bad_input(
    cli: Cli, arguments: list[str], command: str, words: tuple[str, ...], message: str
) -> None:
    outcome = cli(command, *arguments, *UNIFORM[:-1], *words)
    assert outcome.status == 2, outcome.output
    assert message in said(outcome)


@pytest.mark.parametrize(("given", "warns"), [(0.2, False), (0.3, True)])
def test_a_time_that_was_not_reached_as_measured(
    given: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of prefill and decode together three quarters are left, whatever the table says."""
    measured = {
        "prefill": {"pruned_seconds": 2.0, "dense_seconds": 3.0},
        "decode": {"pruned_seconds": 4.0, "dense_seconds": 5.0},
    }
    cost = Cost("latency", lambda _: 1, 1)
    measured_latency._warn_of_target(Target("search.target.latency", cost, given), measured)
    measured_latency._warn_of_target(
        Target("search.target.flops", Cost("flops", lambda _: 1, 1), 0.9), measured
    )
    said = "search.target.latency: 0.3 is to go, and as measured 0.250 is gone"
    assert (said in caplog.text) is warns
    assert "flops" not in caplog.text
