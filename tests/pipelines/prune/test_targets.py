"""Targets in other costs than parameters, alone and together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pruning.costs.accounting import Accounting
from pruning.costs.latency import LatencyTable
from pruning.models.checkpoint import Checkpoint
from pruning.search.allocation import Limit
from pruning.search.uniform import uniform_shape
from pruning.shape import ModelShape
from tests.pipelines.conftest import Cli, Search
from tests.pruning.costs.tables import MLP, written

WriteTable = Callable[..., Path]
NO_RATIO = "search.target_ratio=null"
ALLOCATION = (
    "search=allocation", "search.distribution=[0,1,1]", "search.mlp_group_channels=8",
    "search.rounds=1",
)  # fmt: skip
UNIFORM = ("search=uniform", "search.distribution=[0,1,0]", "search.mlp_group_channels=4")


@pytest.fixture
def write(tmp_path: Path, checkpoint_folder: Path) -> WriteTable:
    """`write()` is the path of a table, relative to where commands run."""

    def saved(**changes: object) -> Path:
        return Path(written(tmp_path / "latency.json", checkpoint_folder, **changes).name)

    return saved


@pytest.fixture(scope="module")
def accounting(checkpoint_folder: Path) -> Accounting:
    return Accounting(Checkpoint(checkpoint_folder).config())


def of_params(tmp_path: Path) -> tuple[dict[str, str], dict[str, float]]:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run.data.params, run.data.metrics


def test_several_costs_at_once(search: Search, tmp_path: Path, accounting: Accounting) -> None:
    """Every one is kept by the shape and by all that was solved; what was asked for and what came
    of it is in every record of the run.
    """
    asked = {"flops": 0.08, "kv_cache": 0.25}
    words = [f"search.target.{name}={ratio}" for name, ratio in asked.items()]
    outcome = search(*ALLOCATION, NO_RATIO, *words)
    assert outcome.status == 0, outcome.output
    shape, summary = ModelShape.parse(outcome.summary["shape"]), outcome.summary

    def saved(each: ModelShape) -> dict[str, float]:
        flops, cache = (
            [count(one) for one in (each, accounting.dense)]
            for count in (
                lambda one: accounting.flops_per_token(one, context_length=32),
                lambda one: accounting.kv_cache_bytes_per_token(one, bytes_per_value=1),
            )
        )
        return {"flops": 1 - flops[0] / flops[1], "kv_cache": 1 - cache[0] / cache[1]}

    [found] = outcome.read("allocation.json")["rounds"]
    for each in [shape, *(ModelShape.parse(one["shape"]) for one in found["solutions"])]:
        assert all(saved(each)[name] >= ratio - 1e-12 for name, ratio in asked.items()), each
    assert summary["target_ratio"] is None
    assert summary["targets"] == {f"search.target.{name}": each for name, each in asked.items()}
    assert {name: cost["ratio"] for name, cost in summary["costs"].items()} == pytest.approx(
        saved(shape)
    )
    identity = summary["identity"]
    assert {name: identity[name] for name in summary["targets"]} == summary["targets"]
    assert "search.target_ratio" not in identity
    lines = [json.loads(line) for line in outcome.trajectory]
    assert lines[-1]["saved"] == pytest.approx(saved(shape))
    assert lines[0]["saved"] == pytest.approx(saved(ModelShape.parse(lines[0]["shape"])))
    assert "asked for 8.0% of FLOPs, 25.0% of KV cache" in " ".join(outcome.output.split())
    params, metrics = of_params(tmp_path)
    assert params["search.target.kv_cache"] == "0.25"
    assert "search.target.latency" not in params
    assert metrics["result/saved_kv_cache"] == summary["costs"]["kv_cache"]["ratio"]
    assert metrics["prune/saved_flops"] == lines[-1]["saved"]["flops"]
    taken = summary["taken"]["evaluations"]["block"]
    assert summary["plan"]["evaluations"]["block"]["min"] <= taken


def test_a_target_in_time_takes_no_slow_size(search: Search, write: WriteTable) -> None:
    words = (*ALLOCATION, NO_RATIO, "search.target.latency=0.12", f"latency={write()}")
    outcome = search(*words)
    assert outcome.status == 0, outcome.output
    latencies = LatencyTable.load(write().absolute())
    shape, dense = ModelShape.parse(outcome.summary["shape"]), ModelShape.dense(4, 3, 48)
    assert not {24, 40} & {layer.mlp_channels for layer in shape.layers}
    cost = outcome.summary["costs"]["latency"]
    pair = (latencies.nanoseconds(dense), latencies.nanoseconds(shape))
    assert (cost["dense"], cost["pruned"]) == pair
    assert cost["ratio"] >= 0.12
    predicted = outcome.summary["latency"]["predicted_seconds"]
    assert sum(predicted.values()) == pytest.approx(pair[1] / 1e9)
    assert "time of a batch, by the table" in outcome.output
    [found] = outcome.read("allocation.json")["rounds"]
    widths = [each for each in found["changes"] if each["unit"] == "mlp_channels"]
    assert {24, 40} <= {each["size"] for each in widths}, "there were none to take"


def test_a_run_with_a_table_goes_on_with_the_same_table(
    search: Search, write: WriteTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*ALLOCATION, NO_RATIO, "search.target.decode=0.1", f"latency={write()}")
    outcome = search(*words)
    assert outcome.status == 0, outcome.output
    whole = outcome.trajectory
    path = outcome.folder / "trajectory.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.chdir("/")  # the path of the table is saved whole
    resumed = search("resume=true", "cluster=inline", f"output_dir={outcome.folder}", bare=True)
    assert resumed.status == 0, resumed.output
    assert resumed.trajectory == whole
    monkeypatch.chdir(outcome.folder.parent)
    write(mlp_channels=MLP | {16: (2, 1)})
    other = search(*words)
    assert other.status == 2
    assert "latency" in other.output
    assert "belongs to another run" in other.output


def test_uniform_widths_for_a_target_in_time(search: Search, write: WriteTable) -> None:
    outcome = search(*UNIFORM, NO_RATIO, "search.target.prefill=0.05", f"latency={write()}")
    assert outcome.status == 0, outcome.output
    latencies, summary = LatencyTable.load(write().absolute()), outcome.summary
    shape = ModelShape.parse(summary["shape"])
    whole, pruned = (
        latencies.seconds(each, "prefill") for each in (ModelShape.dense(4, 3, 48), shape)
    )
    assert 1 - pruned / whole == pytest.approx(summary["costs"]["prefill"]["ratio"])
    assert summary["costs"]["prefill"]["ratio"] >= 0.05
    assert {layer.kv_heads for layer in shape.layers} == {3}
    steps = [json.loads(line) for line in outcome.trajectory]
    assert summary["plan"]["steps"]["mlp_channels"] == {"min": len(steps), "max": len(steps)}


def test_the_short_form_is_the_same_search(search: Search) -> None:
    first = search(*UNIFORM, NO_RATIO, "search.target.parameters=0.12")
    assert first.status == 0, first.output
    again = search(*UNIFORM, "search.target_ratio=0.12")
    assert again.status == 0, again.output
    assert "targets" not in again.summary, "as of runs that know no others"
    assert again.summary["identity"]["search.target_ratio"] == 0.12


def test_what_fits_into_so_many_bytes(
    search: Search, tmp_path: Path, accounting: Accounting
) -> None:
    """Long contexts, in which the cache is half: attentions lose heads for it, too."""
    words = (
        *ALLOCATION, NO_RATIO, "search.target.memory=400kB", "memory.context_length=200",
        "memory.batch_size=2", "memory.dtype=float32",
    )  # fmt: skip
    outcome = search(*words)
    assert outcome.status == 0, outcome.output
    summary, shape = outcome.summary, ModelShape.parse(outcome.summary["shape"])
    cache = accounting.kv_cache_bytes_per_token(shape, bytes_per_value=4)
    assert cache is not None
    taken = 4 * accounting.num_stored_parameters(shape) + 400 * cache
    assert summary["costs"]["memory"]["pruned"] == taken <= 400_000
    assert summary["memory"]["kv_cache"]["pruned"] == 400 * cache
    assert summary["identity"]["memory"] == {
        "context_length": 200, "batch_size": 2, "dtype": "float32"
    }  # fmt: skip
    said = " ".join(outcome.output.split())
    assert "(asked for memory 400kB)" in said
    assert "weights and KV cache of 2 x 200 tokens" in said
    params, metrics = of_params(tmp_path)
    assert params["search.target.memory"] == "400kB"
    assert metrics["result/saved_memory"] == summary["costs"]["memory"]["ratio"]
    resumed = search("resume=true", "cluster=inline", f"output_dir={outcome.folder}", bare=True)
    assert resumed.status == 0, resumed.output
    other = search(*words, "memory.batch_size=1")
    assert other.status == 2
    assert "belongs to another run" in other.output


def test_a_plan_says_what_is_asked_for(cli: Cli, arguments: list[str], write: WriteTable) -> None:
    words = (*arguments, *ALLOCATION, NO_RATIO, "search.target.latency=0.1", f"latency={write()}")
    outcome = cli("plan", *words)
    assert outcome.status == 0, outcome.output
    plan = outcome.read("plan.json")
    assert (plan["target_ratio"], plan["targets"]) == (None, {"search.target.latency": 0.1})
    assert "10.0% of latency" in " ".join(outcome.output.split())
    assert plan["evaluations"]["block"]["min"] > 0


def test_a_plan_takes_no_table_of_another_model(
    cli: Cli, arguments: list[str], write: WriteTable
) -> None:
    """Of a model without weights, more than its sizes cannot be compared."""
    asked = (*arguments, *ALLOCATION, NO_RATIO, "search.target.latency=0.1")
    wide = write(mlp_channels={**MLP, 64: (9, 4)})
    outcome = cli("plan", *asked, f"latency={wide}")
    assert outcome.status == 2
    [error] = outcome.errors
    assert "whose whole MLP has 64 channels, and that of tiny-llama has 48" in error
    outcome = cli("plan", *asked, f"latency={write(mlp_channels={32: (5, 2), 48: (8, 3)})}")
    assert outcome.status == 2, outcome.output
    assert "the table has 32 to 48" in outcome.output


def test_sizes_of_the_shape_that_was_found_are_said(search: Search, write: WriteTable) -> None:
    """Those of later rounds are not known at the start."""
    words = (*ALLOCATION, NO_RATIO, "search.target.latency=0.2")
    outcome = search(*words, f"latency={write(mlp_channels={0: (0, 0), 48: (8, 3)})}")
    assert outcome.status == 0, outcome.output
    widths = {layer.mlp_channels for layer in ModelShape.parse(outcome.summary["shape"]).layers}
    missing = sorted(widths - {0, 48})
    assert missing
    said = f"seen: MLPs of {', '.join(map(str, missing))} channels"
    assert said in [line for line in outcome.output.splitlines() if "in proportion" in line][-1]


def test_a_sweep_over_a_cost(cli: Cli, arguments: list[str]) -> None:
    words = (*arguments, *UNIFORM, NO_RATIO, "search.target.flops=[0.05,0.1]")
    outcome = cli("sweep", *words)
    assert outcome.status == 0, outcome.output
    rows = {row["name"]: row for row in outcome.read("sweep.json")["points"]}
    assert {row["target_ratio"] for row in rows.values()} == {None}
    for ratio in (0.05, 0.1):
        summary: dict[str, Any] = outcome.read(f"flops_{ratio:g}/summary.json")
        assert summary["costs"]["flops"]["ratio"] >= ratio
    assert rows["flops_0.1"]["ratio"] > rows["flops_0.05"]["ratio"]
    report = cli("report", str(outcome.folder), folder="report")
    assert report.status == 0, report.output
    page = next(report.folder.glob("*.html")).read_text()
    assert "10.0% of FLOPs" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("search=random", "search.distribution=[1,0,0]", "search.target.flops=0.1"),
            "search.target.flops: not for search.strategy=random, which ends by its share of "
            "parameters, search.target_ratio; use search=multipruner, search=uniform, "
            "search=allocation",
        ),
        (
            (*ALLOCATION, "search.target.latency=0.1", "search.target.decode=0.1"),
            "search.target.latency, search.target.decode: given without a table; give latency=FILE",
        ),
        ((*ALLOCATION, "search.target.flops=3"), "search.target.flops: 3; it is removed / dense"),
        (
            (*ALLOCATION, "search.target_ratio=0.1", "search.target.parameters=0.2"),
            "search.target_ratio, search.target.parameters: both are given",
        ),
        (
            (*UNIFORM, "search.target.flops=0.1", "memory.batch_size=2"),
            "memory.batch_size: no effect without search.target.memory; leave out",
        ),
        ((*UNIFORM, "search.target.memory=1G"), "search.target.memory: 1G; a size is a number"),
        (
            (*UNIFORM, "search.target.memory=20kB"),
            "search.target.memory: 20 kB; MLPs of 4 channels in 2 of 4 layers come to 1",
        ),
        (
            (*UNIFORM, "search.target.kv_cache=0.2"),
            "search.target.kv_cache: 0.2; MLPs of 4 channels in 2 of 4 layers come to 0, with",
        ),
        (
            (*ALLOCATION, "search.target.kv_cache=0.9"),
            "search.target.kv_cache: 0.9; MLPs of 4 channels and attentions of 1 KV head in 2 of",
        ),
        (
            (*ALLOCATION, "search.target.flops=0.35", "search.table_ratio=0.02"),
            "search.table_ratio: 0.02; what is measured around the uniform shape of that ratio "
            "goes to",
        ),
    ],
)
def test_bad_input(search: Search, words: tuple[str, ...], message: str) -> None:
    outcome = search(NO_RATIO, *words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output
    assert not outcome.folder.exists(), "something was written"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "0" * 32}, "(fingerprint 00000000"),
        (
            {"mlp_channels": {size: MLP[size] for size in (32, 40, 48)}},
            "latency: MLP of 28 channels; the table has 32 to 48; measure one",
        ),
        ({"rest": (-200, 1)}, "search.target.latency: 0.1, but by "),
        (None, "which has no effect without one or more of search.target.latency"),
    ],
)
def test_a_table_that_does_not_fit(
    search: Search, write: WriteTable, changes: dict[str, Any] | None, message: str
) -> None:
    asked = "search.target.flops=0.1" if changes is None else "search.target.latency=0.1"
    outcome = search(*ALLOCATION, NO_RATIO, asked, f"latency={write(**changes or {})}")
    assert outcome.status == 2, outcome.output
    assert message in " ".join(outcome.output.split())
    assert not outcome.folder.exists(), "something was written"


def test_uniform_shapes_lose_heads_where_widths_are_not_enough(accounting: Accounting) -> None:
    """In the middle of what there is: MLPs keep half of their width or more while they can."""
    limits = [Limit.of_parameters(accounting, 0.15)]
    [alone, both] = [uniform_shape(accounting, limits, group=4, heads=heads) for heads in (0, 1)]
    assert {layer.kv_heads for layer in alone.layers} == {3}
    assert min(layer.mlp_channels for layer in alone.layers) < 24
    assert min(layer.mlp_channels for layer in both.layers) >= 24
    assert [layer.kv_heads for layer in both.layers] == [3, 2, 2, 3]
    assert accounting.ratio(both) >= 0.15
