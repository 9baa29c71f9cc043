"""Tables of other engines: what is exported and timed, what its times come to, and what is
refused. The engine is one of our own, but for one test; real times are never asserted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import engines
from pipelines.engines import EngineModel
from pipelines.latency import in_engine
from pipelines.latency.in_engine import EngineModels, few_levels, whole_shapes
from pruning.costs.block_times import Levels
from pruning.costs.engine_speed import EngineRuns
from pruning.costs.latency import PHASES, LatencyTable
from pruning.costs.speed import SpeedSettings
from pruning.costs.vllm_speed import PYTHON_VARIABLE
from pruning.models.geometry import Geometry
from pruning.scoring.arithmetic import cpu_name, processor_name
from pruning.shape import ModelShape
from tests.documents import save_reader, with_merges
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pruning.export.llama_cpp import needs_llama_cpp
from workers.cluster.machine import LocalMachine

Measure = Callable[..., Outcome]
QUICK = ("cluster=inline", "prompt_tokens=6", "new_tokens=2", "rounds=2", "widths=[24]")
REST, ATTENTION, MLP = (5.0, 7.0), (3.0, 2.0), (0.25, 0.125)
"""Seconds of the engine: of each forward, of a KV head, of a channel; prefill and decoding."""


def seconds(shape: ModelShape) -> tuple[float, float]:
    prefill, decode = (
        REST[phase]
        + sum(
            ATTENTION[phase] * layer.kv_heads + MLP[phase] * layer.mlp_channels
            for layer in shape.layers
        )
        for phase in (0, 1)
    )
    return prefill, decode


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine was asked, which is twice as slow in its second round."""
    log: dict[str, Any] = {}

    def runs(
        engine: str, model: EngineModel, shapes: Mapping[str, ModelShape], *_: Any, **more: Any
    ) -> EngineRuns:
        log.update(more, engine=engine, model=model, shapes=shapes)
        return EngineRuns(
            "engine 1",
            "cpu",
            {
                name: [(slow * prefill, slow * decode) for slow in (1, 2)]
                for name, shape in shapes.items()
                for prefill, decode in [seconds(shape)]
            },
        )

    monkeypatch.setattr(in_engine, "runs_in_engine", runs)
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    monkeypatch.setattr(engines, "vllm_python", lambda: "python")
    return log


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One that llama.cpp opens."""
    return with_merges(save_reader(tmp_path / "reader"))


@pytest.fixture
def measure(cli: Cli, model: Path) -> Measure:
    def run(*words: str, folder: str = "measured") -> Outcome:
        return cli("latency", f"model.path={model}", *QUICK, *words, folder=folder)

    return run


def test_the_times_of_blocks_are_told_from_those_of_models(
    measure: Measure, model: Path, asked: dict[str, Any]
) -> None:
    """An engine whose blocks add up has a table without error, the same as if it were our own."""
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 0, outcome.output
    path = outcome.folder / "latency.json"
    table = LatencyTable.load(path)
    assert (table.engine, table.dtype) == ("llama.cpp", "float32")
    assert table.arithmetic == {
        "device": cpu_name(),
        "processor": processor_name(),
        "num_threads": 1,
        "engine": "engine 1",
    }
    times = table.times
    for phase, name in enumerate(PHASES):
        middle = 1.5  # of a round as it is and one twice as slow
        assert getattr(times.rest, name).median == pytest.approx(middle * REST[phase])
        for heads, found in times.kv_heads.items():
            taken = middle * ATTENTION[phase] * heads
            assert getattr(found, name).median == pytest.approx(taken, abs=1e-9)
        for channels, found in times.mlp_channels.items():
            taken = middle * MLP[phase] * channels
            assert getattr(found, name).median == pytest.approx(taken, abs=1e-9)
    given = asked["model"]
    assert (asked["engine"], asked["folder"]) == ("llama.cpp", outcome.folder)
    assert (given.checkpoint.folder, given.dtype, given.num_threads) == (model, "float32", 1)
    assert given.tokenizer_gguf is None
    [text] = table.whole_models
    for phase in PHASES:  # whole nanoseconds
        assert table.error(ModelShape.parse(text), phase) == pytest.approx(0, abs=1e-3)
    again = path.read_text()
    table.save(path)
    assert path.read_text() == again
    assert outcome.output.count(" error ") == 1
    assert "llama.cpp, float32" in outcome.output


def test_whole_models_say_what_the_table_is_worth(
    measure: Measure, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine in which whole models take a quarter more than their blocks."""
    plain = in_engine.runs_in_engine

    def runs(*words: Any, **more: Any) -> EngineRuns:
        found = plain(*words, **more)
        return EngineRuns(
            found.version,
            found.device,
            {
                name: [(1.25 * prefill, decode) for prefill, decode in each]
                if name.startswith("whole")
                else each
                for name, each in found.seconds.items()
            },
        )

    monkeypatch.setattr(in_engine, "runs_in_engine", runs)
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 0, outcome.output
    [each] = outcome.read("latency.json")["whole_models"]
    ratio = each["prefill"]["median"] / each["predicted_seconds"]["prefill"]
    assert ratio == pytest.approx(1.25)
    assert each["decode"]["median"] == pytest.approx(each["predicted_seconds"]["decode"])
    assert outcome.output.count("-20.0%") == 2, "in the table, and in a warning"
    assert "latency: whole models took other times than the table says" in outcome.output


@pytest.mark.parametrize(("slow", "warns"), [(1.0, False), (1.05, False), (1.4, True), (0.7, True)])
def test_where_a_model_lies_in_memory_is_told_from_its_size(
    measure: Measure,
    asked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    slow: float,
    warns: bool,
) -> None:
    """The first model is written once more at the end: of an engine in which the first is slow."""
    plain = in_engine.runs_in_engine

    def runs(*words: Any, **more: Any) -> EngineRuns:
        found = plain(*words, **more)
        first = next(iter(found.seconds))
        seconds = {**found.seconds, first: [(p, slow * d) for p, d in found.seconds[first]]}
        return EngineRuns(found.version, found.device, seconds)

    monkeypatch.setattr(in_engine, "runs_in_engine", runs)
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 0, outcome.output
    first, *_, last = asked["shapes"].values()
    assert first == last
    assert ("a model that was written twice takes another time each" in outcome.output) == warns


def test_an_engine_of_many_processes_gets_few_models(
    measure: Measure, asked: dict[str, Any]
) -> None:
    """vLLM: attentions whole, gone and of one head, and one width between unless widths are asked
    for. All as DeciLM, in which free sizes are served.
    """
    outcome = measure("engine=vllm", "widths=[]", "model.dtype=bfloat16", "batch_size=2")
    assert outcome.status == 0, outcome.output
    table = LatencyTable.load(outcome.folder / "latency.json")
    whole = max(table.times.mlp_channels)
    assert sorted(table.times.kv_heads) == [0, 1, max(table.times.kv_heads)]
    assert len(table.times.mlp_channels) == 3
    assert 0 < sorted(table.times.mlp_channels)[1] < whole
    assert table.dtype == asked["model"].dtype == "bfloat16"
    assert len(asked["shapes"]) == 6 + 1 + 1
    assert [name.partition("-")[0] for name in asked["as_decilm"]] == ["blocks"] * 6 + ["again"]


def test_levels_for_few_models() -> None:
    many = Levels((0, 1, 2, 3), (0, 16, 32, 48))
    assert few_levels(many, all_widths=True) == Levels((0, 1, 3), (0, 16, 32, 48))
    assert few_levels(many, all_widths=False) == Levels((0, 1, 3), (0, 32, 48))
    one = Levels((0, 1), (0, 48), 20)
    assert few_levels(one, all_widths=False) == one


def test_the_whole_models_that_are_measured() -> None:
    """The dense one, and one that has lost of both kinds of blocks."""
    geometry = Geometry(6, 2, 2, 16, 96)
    dense, pruned = whole_shapes(geometry)
    assert dense == geometry.dense
    assert [layer.mlp_channels for layer in pruned.layers] == [64] * 6, "72 is no multiple of 64"
    assert [layer.kv_heads for layer in pruned.layers] == [2, 0, 2, 2, 2, 0]
    _, small = whole_shapes(Geometry(2, 1, 1, 16, 48))
    assert small.layers[0].mlp_channels == 36


def test_a_model_that_is_a_stack_is_measured_once() -> None:
    """And the dense one is no check of a table that is made of it."""
    levels = Levels((0, 2), (0, 96))
    deep = EngineModels.of(Geometry(12, 2, 2, 16, 96), levels)
    assert [shape.text for shape in deep.wholes.values()] == [
        "2x96*12",
        "2x64 0x64 2x64*3 0x64 2x64*3 0x64 2x64*2",
    ]
    flat = EngineModels.of(Geometry(8, 2, 2, 16, 96), levels)
    assert [shape.text for shape in flat.wholes.values()] == ["2x64 0x64 2x64*3 0x64 2x64*2"]


def test_layers_without_attention_are_told_from_one_that_has_it(
    measure: Measure, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both formats write an attention where the first layer has none: of an engine in which that
    takes as long as a whole one, a removed attention takes no time.
    """
    plain = globals()["seconds"]

    def with_stand_in(shape: ModelShape) -> tuple[float, float]:
        prefill, decode = plain(shape)
        more = 0 if shape.layers[0].kv_heads else 3
        return prefill + more * ATTENTION[0], decode + more * ATTENTION[1]

    monkeypatch.setitem(globals(), "seconds", with_stand_in)
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 0, outcome.output
    gone = LatencyTable.load(outcome.folder / "latency.json").times.kv_heads[0]
    assert gone.prefill.median == pytest.approx(0, abs=1e-9)
    assert gone.decode.median == pytest.approx(0, abs=1e-9)


def test_what_is_known_to_be_another_device_is_found_before_it_is_measured(
    measure: Measure, asked: dict[str, Any]
) -> None:
    assert measure("engine=llama.cpp").status == 0
    asked.clear()
    other = measure("engine=llama.cpp", "cluster.num_cpus_per_evaluator=2")
    assert other.status == 2
    assert "has the table of another device (num_threads: 1 there, 2 here)" in other.output
    assert not asked


def test_models_that_do_not_fit_are_refused(
    measure: Measure, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disk, and in memory, from which llama.cpp would read them."""
    monkeypatch.setattr(engines.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**4))
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 2
    assert "0.0 GB on the disk of output_dir are free; give fewer widths" in outcome.output
    assert not outcome.folder.exists()
    monkeypatch.setattr(engines.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    monkeypatch.setattr(LocalMachine, "detect", classmethod(lambda cls, **_: cls(8, 1, 10**4)))
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 2
    assert "0.0 GB of memory are free" in outcome.output
    assert measure("engine=vllm").status == 0, "a GPU has memory of its own"
    assert asked["engine"] == "vllm"


def test_vllm_decodes_one_token_more(measure: Measure, asked: dict[str, Any]) -> None:
    assert measure("engine=llama.cpp", "prompt_tokens=318").status == 0
    outcome = measure("engine=vllm", "prompt_tokens=318", folder="vllm")
    assert outcome.status == 2
    assert "318 + 2 + 1 in vLLM, above this model's context of 320 tokens" in outcome.output


def test_a_folder_is_of_one_engine(measure: Measure, asked: dict[str, Any]) -> None:
    assert measure("engine=llama.cpp").status == 0
    other = measure("engine=vllm")
    assert other.status == 2
    assert "engine: llama.cpp there, vllm here" in other.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("engine=llamacpp",), "engine: 'llamacpp'; one of transformers, llama.cpp, vllm"),
        (("engine=llama.cpp", "batch_size=2"), "batch_size: 2; llama.cpp is measured with one"),
        (
            ("engine=vllm", "cluster=local", "cluster.num_gpus_per_evaluator=1"),
            "cluster.num_gpus_per_evaluator: 1, which has no effect: engine=vllm takes the device",
        ),
        (
            ("engine=vllm", "cluster=local", "cluster.num_gpus=0"),
            "cluster.num_gpus: 0, which has no",
        ),
        (
            ("engine=llama.cpp", "model.trust_remote_code=true"),
            "model.trust_remote_code: true, and engine=llama.cpp gets no code of models",
        ),
        (
            ("engine=vllm", "cluster=ray", "cluster.address=10.0.0.1:6379"),
            "cluster: ray, and engine=vllm is measured on this machine; give cluster=local",
        ),
    ],
)
def test_bad_input(
    measure: Measure, asked: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    outcome = measure(*words)
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert message in error
    assert not outcome.folder.exists(), "something was written"
    assert not asked


def test_what_is_not_installed_or_cannot_be_written(
    measure: Measure, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: False)
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 2
    assert "engine: llama.cpp is not installed here: pip install" in outcome.output
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/python")
    outcome = measure("engine=vllm", folder="vllm")
    assert f"engine: {PYTHON_VARIABLE}: cannot run /no/python" in outcome.output
    other = save_reader(tmp_path / "other", "phi")
    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    outcome = cli("latency", f"model.path={other}", *QUICK, "engine=llama.cpp", folder="phi")
    assert outcome.status == 2
    assert "engine: as with export format=gguf: " in outcome.output


def test_an_engine_that_fails_is_one_error(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashed(*_: object, **__: object) -> None:
        raise RuntimeError("llama.cpp cannot run model-f32.gguf (it ended with -11): nothing")

    monkeypatch.setattr(engines, "has_llama_cpp", lambda: True)
    monkeypatch.setattr(engines, "llama_cpp_runs", crashed)
    outcome = measure("engine=llama.cpp")
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert error.startswith("error: engine: llama.cpp cannot run model-f32.gguf")
    assert not (outcome.folder / "latency.json").exists()
    assert not list(outcome.folder.glob(".engine-*"))


@needs_llama_cpp
def test_llama_cpp_runs_every_size(measure: Measure) -> None:
    outcome = measure("engine=llama.cpp", "rounds=1")
    assert outcome.status == 0, outcome.output
    table = LatencyTable.load(outcome.folder / "latency.json")
    assert table.settings == SpeedSettings(1, 6, 2, 1)
    assert table.arithmetic["engine"].startswith("llama.cpp of cyllama ")
    for times in table.whole_models.values():
        assert times.prefill.median > 0
        assert times.decode.median > 0
    assert not list(outcome.folder.glob(".engine-*"))
