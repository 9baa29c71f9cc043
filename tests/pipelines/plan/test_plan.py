"""The command that plans: a configuration without weights is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from pipelines.config.overrides import CONF
from pipelines.config.prune import PruneConfig
from pipelines.evaluators import find_placement
from pipelines.plan.estimate import measured_tflops
from pruning.errors import InputError
from tests.conftest import ROOT
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search
from workers.cluster.machine import LocalMachine

LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
SIZES = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
Planning = Callable[..., Outcome]


@pytest.fixture
def planning(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Planning:
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))

    def run(*overrides: str, model: str = "7B") -> Outcome:
        folder = tmp_path / model
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA_2 | SIZES[model]))
        return cli("plan", f"model.path={folder}", "calibration=alpaca", *overrides)

    return run


def read(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status == 0, outcome.output
    data: dict[str, Any] = outcome.read("plan.json")
    return data


def test_llama_2_7b_as_published(planning: Planning) -> None:
    """The published shape implies 595 block, 1,705 MLP and 529 head evaluations."""
    found = read(
        planning(
            "search.target_ratio=0.22",
            "search.mlp_group_channels=1024",
            "search.head_group_channels=128",
            "search.importance=l1",
        )
    )
    for name, count in {"block": 595, "mlp_channels": 1705, "attention_heads": 529}.items():
        assert found["evaluations"][name]["min"] <= count <= found["evaluations"][name]["max"]
    assert found["calibration"]["block"] == {
        "num_sequences": 16,
        "sequence_length": 2048,
        "estimated": True,
    }
    assert found["num_parameters"] == 6_738_415_616
    assert 13e9 < found["peak_bytes_per_evaluator"] < 40e9
    assert found["hours"] is None


def test_the_type_is_that_of_the_search(
    planning: Planning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.models.dtypes.cpu_features", frozenset)
    on_cpus = read(planning("cluster.num_gpus=0"))
    assert on_cpus["dtype"] == "float32"
    for gpus in (["cluster.num_gpus=8"], ["cluster=ray", "cluster.address=head:6379"]):
        on_gpus = read(planning(*gpus))
        assert on_gpus["dtype"] == "bfloat16"
        assert on_gpus["peak_bytes_per_evaluator"] < 0.6 * on_cpus["peak_bytes_per_evaluator"]
    assert (
        read(planning("cluster.num_gpus=8", "cluster.num_gpus_per_evaluator=0"))["dtype"]
        == "float32"
    )


def test_llama_2_70b(planning: Planning) -> None:
    found = read(
        planning(
            "search.target_ratio=0.2",
            "search.mlp_group_channels=1024",
            "tflops_per_evaluator=100",
            "cluster.num_evaluators=8",
            model="70B",
        )
    )
    assert found["num_parameters"] == 68_976_648_192
    assert found["hours"] == pytest.approx(found["flops"] / (8 * 100e12 * 3600))


@pytest.mark.parametrize(
    ("machine", "given", "count"),
    [
        (LocalMachine(64, 8, 10**12), [], 8),
        (LocalMachine(64, 8, 10**12), ["cluster.num_gpus_per_evaluator=2"], 4),
        (LocalMachine(6, 0, 10**12), [], 6),
        (LocalMachine(6, 0, 10**12), ["cluster.num_cpus_per_evaluator=2"], 3),
        (LocalMachine(6, 0, 100 * 10**9), ["model.dtype=float32"], 2),
        (LocalMachine(6, 0, 10**9), [], 1),
        (LocalMachine(64, 8, 10**12), ["cluster.num_evaluators=3"], 3),
        (LocalMachine(64, 8, 10**12), ["cluster=inline"], 1),
        (LocalMachine(64, 8, 10**12), ["cluster=ray", "cluster.address=head:6379"], 1),
    ],
)
def test_as_many_evaluators_as_the_search_starts(
    planning: Planning,
    monkeypatch: pytest.MonkeyPatch,
    machine: LocalMachine,
    given: list[str],
    count: int,
) -> None:
    def detect(*, num_gpus: int | None) -> LocalMachine:
        return machine

    monkeypatch.setattr(LocalMachine, "detect", detect)
    outcome = planning("tflops_per_evaluator=100", *given)
    found = read(outcome)
    assert found["num_evaluators"] == count
    assert f"time on {count} evaluator{'s' if count > 1 else ''}" in outcome.output
    assert found["hours"] == pytest.approx(found["flops"] / (count * 100e12 * 3600))
    if not any(word.startswith("cluster=") for word in given):
        with initialize_config_dir(str(CONF), version_base=None):
            cluster = PruneConfig.of(compose("prune", overrides=given)).cluster
        placement = find_placement(cluster, machine, found["peak_bytes_per_evaluator"])
        assert placement is not None
        assert placement.num_evaluators == count


def test_a_sweep_is_planned_as_its_points_that_pay_for_their_trunk_once(planning: Planning) -> None:
    common = ("search.mlp_group_channels=1024", "tflops_per_evaluator=100")
    found = read(planning("search.target_ratio=[0.1,0.22]", "search.importance=[l1,none]", *common))
    alone = {
        target: read(planning(f"search.target_ratio={target}", *common)) for target in (0.1, 0.22)
    }
    assert [point["name"] for point in found["points"]] == [
        f"target_ratio_{target}_importance_{order}"
        for target in (0.1, 0.22)
        for order in ("l1", "none")
    ]
    for point in found["points"]:
        theirs = alone[point["settings"]["search.target_ratio"]]
        assert {
            name: point[name] for name in ("steps", "evaluations", "ratio", "flops", "hours")
        } == {name: theirs[name] for name in ("steps", "evaluations", "ratio", "flops", "hours")}
    for end in ("min", "max"):
        blocks, channels = (
            [each["evaluations"][stage][end] for each in alone.values()]
            for stage in ("block", "mlp_channels")
        )
        assert found["evaluations"]["block"][end] == 2 * max(blocks), (
            "one trunk for each order of channels"
        )
        assert found["evaluations"]["mlp_channels"][end] == 2 * sum(channels)
    assert (
        2 * alone[0.22]["flops"]
        < found["flops"]
        < 2 * sum(each["flops"] for each in alone.values())
    )
    assert found["hours"] == pytest.approx(
        found["flops"] / (100e12 * 3600 * found["num_evaluators"])
    )


ALLOCATION = ("search=allocation", "tflops_per_evaluator=100")


def test_allocations_share_their_statistics(planning: Planning) -> None:
    """What is measured lies around a uniform shape, and that depends on the target."""
    found = read(planning("search.target_ratio=[0.1,0.2]", *ALLOCATION))
    alone = [read(planning(f"search.target_ratio={target}", *ALLOCATION)) for target in (0.1, 0.2)]
    for end in ("min", "max"):
        assert found["evaluations"]["block"][end] == sum(
            each["evaluations"]["block"][end] for each in alone
        )
    statistics = alone[0]["statistics"]["flops"]
    assert statistics == alone[1]["statistics"]["flops"] > 0
    assert found["flops"] == pytest.approx(sum(each["flops"] for each in alone) - statistics)
    assert found["hours"] == pytest.approx(
        found["flops"] / (100e12 * 3600 * found["num_evaluators"])
    )


def test_allocations_with_one_table(planning: Planning) -> None:
    """Targets after the first pay for what they measure of their own: their solutions, their paths,
    and whole rounds after the first one. Those of another text share nothing with them.
    """
    ratios, flops, most = (0.1, 0.2, 0.3), [], []
    for rounds in (4, 5):  # of so many, one more makes no path longer
        words = ("search.table_ratio=0.2", f"search.rounds={rounds}", *ALLOCATION)
        alone = [read(planning(f"search.target_ratio={ratio}", *words)) for ratio in ratios]
        found = read(planning("search.target_ratio=[0.1,0.2,0.3]", *words))
        blocks = [each["evaluations"]["block"] for each in alone]
        table = blocks[1]["min"]
        assert [each["min"] for each in blocks] == [table] * 3
        most.append(sum(each["max"] for each in blocks))
        assert found["evaluations"]["block"] == {"min": table, "max": most[-1] - 2 * table}
        statistics = alone[0]["statistics"]["flops"]
        flops.append(sum(each["flops"] for each in alone))
        one = flops[-1] - 2 * statistics - found["flops"]  # the table, twice
        of_evaluation = 2 * (flops[-1] - flops[0]) / (most[-1] - most[0]) if rounds == 5 else None
        assert of_evaluation is None or one == pytest.approx(2 * table * of_evaluation)
    assert most[1] - most[0] == 3 * (6 * 32 + 4)
    texts = ("calibration.num_block_samples=[256,128]", "search.target_ratio=[0.1,0.2]", *words)
    two = read(planning("search.target_ratio=[0.1,0.2]", *words))["evaluations"]["block"]
    assert read(planning(*texts))["evaluations"]["block"] == {
        end: 2 * number for end, number in two.items()
    }


def test_the_path_of_an_allocation_runs_on_the_text_of_the_table(planning: Planning) -> None:
    """More text for the statistics costs what the statistics cost, and nothing else."""
    found = []
    for samples in (128, 1024):
        words = (f"calibration.num_width_samples={samples}", "search.target_ratio=0.2")
        found.append(read(planning(*ALLOCATION, *words)))
    little, much = (each["flops"] - each["statistics"]["flops"] for each in found)
    assert much == pytest.approx(little)
    assert found[1]["statistics"]["flops"] > 4 * found[0]["statistics"]["flops"]


def test_a_plan_refuses_what_the_sweep_refuses(planning: Planning) -> None:
    """An option that does nothing in any point; in some of them is enough."""
    words = ("search=blockpruner", "search.mlp_group_channels=64")
    outcome = planning(*words, "search.target_ratio=[0.1,0.2]")
    assert outcome.status == 2
    assert [line.partition(":")[2].partition(":")[0] for line in outcome.errors] == [
        " search.mlp_group_channels"
    ]
    outcome = planning("search.mlp_group_channels=64", "search.distribution=[[1,0,0],[44,52,4]]")
    assert outcome.status == 0, outcome.output
    outcome = planning("search=blockpruner", "search.importance=[l1,activation]")
    assert outcome.status == 2
    assert len(outcome.errors) == 2, "a line for each point"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "search.target_rato=[0.1,0.2]",
            "search.target_rato: no such option; did you mean search.target_ratio?",
        ),
        ("search.mlp_group_channels=[a,b]", "could not be converted to Integer"),
        ("search=[multipruner,none]", "Could not find 'search/none'"),
    ],
)
def test_a_list_that_is_wrong_is_one_line(planning: Planning, word: str, message: str) -> None:
    outcome = planning(word)
    assert outcome.status == 2
    assert message in outcome.errors[0]
    assert "Traceback" not in outcome.output


WATCHED = """
import gc, json, re, runpy, sys
found = {}
def watch(event, arguments):
    if event == "import" and arguments[0] == "torch":
        found["collects while it imports"] = gc.isenabled()
sys.addaudithook(watch)
runpy.run_module("pipelines.plan", run_name="__main__")
elsewhere = ["ray", "mlflow", "matplotlib", "datasets", "lm_eval", "pandas", "sklearn", "alembic"]
elsewhere += ["requests", "sqlalchemy", "gguf", "pruning.export.folder", "pruning.scoring.nll"]
elsewhere += ["workers.evaluators.shapes", "workers.cluster.ray_session"]
found["unwanted"] = [name for name in elsewhere if name in sys.modules]
found["seconds to import"] = [name for name in ("torch", "transformers") if name in sys.modules]
found["collects afterwards"] = gc.isenabled()
found["looks through at the end"] = len(gc.get_objects()) / gc.get_freeze_count()
# ru_maxrss counts the parent that it was forked from, too
found["peak kB"] = int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps(found))
"""


def test_it_loads_only_what_it_needs(tmp_path: Path) -> None:
    """In a process of its own: these are what makes a command slow to start, and planning has no
    use for them. Once a configuration is known, torch and transformers are among them.
    """
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2 | SIZES["70B"]))
    words = [f"model.path={tmp_path}", "calibration=alpaca", "measure_rate=false"]
    command = [sys.executable, "-c", WATCHED, *words]
    found, plans = [], []
    for name in ("first", "second"):
        done = subprocess.run(
            [*command, f"output_dir={tmp_path / name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"MULTIPRUNER_CACHE": str(tmp_path / "cache")},
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        plans.append((tmp_path / name / "plan.json").read_bytes())
    first, second = found
    for each in found:
        assert each["unwanted"] == []
        assert each["collects afterwards"]
        assert each["peak kB"] < 1_000_000
    assert first["seconds to import"] == ["torch", "transformers"]
    assert not first["collects while it imports"]
    assert first["looks through at the end"] < 0.1, (
        "what is imported after the start is looked through object by object when the process ends"
    )
    assert second["seconds to import"] == []
    assert plans[0] == plans[1]
    assert json.loads(plans[0])["num_parameters"] == 68_976_648_192


def test_the_rate_of_an_earlier_search(ended: Outcome, search: Search, planning: Planning) -> None:
    tflops = measured_tflops(ended.folder)
    assert tflops > 0
    found = read(planning(f"rate_of={ended.folder}"))
    assert found["rate"] == {"source": "run", "tflops": tflops}
    assert found["hours"] > 0
    again = search(folder="again")
    with pytest.raises(InputError, match="took scores from the store"):
        measured_tflops(again.folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "search.distribution=[0,1,0]",
            (
                "search.target_ratio: 0.9; no path reaches it: the mlp_channels stage runs out of "
                "candidates"
            ),
        ),
        ("rate_of=/nowhere", "rate_of: /nowhere is not the output_dir of a search that has ended"),
        ("tflops_per_evaluator=0", "tflops_per_evaluator: 0; it is above 0"),
    ],
    ids=["impossible", "rate", "tflops"],
)
def test_bad_input(planning: Planning, override: str, message: str) -> None:
    target = "search.target_ratio=0.9" if "distribution" in override else "search.target_ratio=0.1"
    outcome = planning(target, override)
    assert outcome.status == 2
    assert message in outcome.errors[0]


@pytest.mark.parametrize(
    ("model", "gigabytes", "passes", "most_bytes"),
    [("7B", 17.66, 5, 70e9), ("70B", 284.5, 80, 320e9)],
)
def test_allocation(
    planning: Planning, model: str, gigabytes: float, passes: int, most_bytes: float
) -> None:
    """A Gram matrix of 11,008 channels is 0.5 GB, of 28,672 3.3 GB: 7B goes through the text five
    times with at most 8 GB of sums, 70B once for each layer.
    """
    found = read(
        planning(
            "search=allocation",
            "search.target_ratio=0.2",
            "tflops_per_evaluator=100",
            "model.dtype=bfloat16",
            model=model,
        )
    )
    layers = SIZES[model]["num_hidden_layers"]
    statistics = found["statistics"]
    assert statistics["bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.03)
    assert statistics["passes"] == passes
    assert found["evaluations"]["block"]["min"] <= 6 * layers + 1
    first, later = found["evaluations"]["block"]["min"], 6 * layers + 4
    assert found["evaluations"]["block"]["max"] == first + 4 + later, "and four solutions of each"
    steps = {stage: found["steps"][stage]["max"] for stage in ("mlp_channels", "attention_heads")}
    assert steps == {"mlp_channels": 4 * layers, "attention_heads": 2 * layers}, "two rounds"
    assert found["peak_bytes_per_evaluator"] < most_bytes
    greedy = read(planning("search.target_ratio=0.2", "model.dtype=bfloat16", model=model))
    assert "statistics" not in greedy
    assert found["peak_bytes_per_evaluator"] > greedy["peak_bytes_per_evaluator"]
    assert found["hours"] > 0
