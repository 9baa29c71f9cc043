"""Other shapes from the folder of an allocation, and what evaluate and export make of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.target import costs_of
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape
from tests.pipelines.command import Outcome, searched
from tests.pipelines.conftest import Cli
from tests.pipelines.solve.conftest import Solve
from tests.tiny_search import tiny_search


def test_a_shape_for_several_costs_under_constraints(solve: Solve, checkpoint_folder: Path) -> None:
    outcome = solve(
        "search.target.parameters=0.1", "search.target.kv_cache=0.15", "search.target.flops=0.12",
        "search.width_multiple=8",
    )  # fmt: skip
    assert outcome.status == 0, outcome.output
    shape = ModelShape.from_json(outcome.read("shape.json"))
    said = outcome.read("solution.json")
    costs = costs_of(Accounting(Checkpoint(checkpoint_folder).config()), context_length=32)
    for name, ratio in (("parameters", 0.1), ("kv_cache", 0.15), ("flops", 0.12)):
        assert said["costs"][name]["ratio"] == costs[name].ratio(shape) >= ratio
        assert said["targets"][f"search.target.{name}"] == ratio
    assert all(layer.mlp_channels % 8 == 0 for layer in shape.layers)
    assert said["constraints"] == ["search.width_multiple=8"]
    assert said["shape"] == shape.text


def test_the_target_of_the_run_gives_what_the_run_measured(solve: Solve, allocated: Path) -> None:
    outcome = solve("search.target_ratio=0.12")
    said, run = (
        outcome.read("solution.json"),
        json.loads((allocated / "allocation.json").read_text()),
    )
    last = run["rounds"][-1]
    measured = {each["shape"]: each["kl"] for each in last["solutions"]}
    assert said["kl"]["measured"] == last["base_kl"] + measured[said["shape"]]
    assert said["kl"]["round"] == len(run["rounds"])
    assert "(measured)" in outcome.output
    assert "extrapolation" not in outcome.output


def test_several_targets_have_folders_of_their_own(solve: Solve) -> None:
    outcome = solve("search.target_ratio=[0.06,0.12,0.2]")
    assert outcome.status == 0, outcome.output
    ratios = [0.06, 0.12, 0.2]
    found = [outcome.read(f"target_ratio_{ratio:g}/solution.json") for ratio in ratios]
    assert [each["targets"]["search.target_ratio"] for each in found] == ratios
    reached = [each["costs"]["parameters"]["ratio"] for each in found]
    assert all(ratio <= end for ratio, end in zip(ratios, reached, strict=True))
    assert reached == sorted(reached)


def test_no_number_is_without_the_word_that_says_what_it_is_worth(solve: Solve) -> None:
    """The wider the target, the further from what was measured."""
    outcome = solve("search.target_ratio=0.22")
    said = outcome.read("solution.json")
    assert "extrapolation" in said["kl"]
    assert not {"measured", "interpolation"} & said["kl"].keys()
    assert said["kl"]["distance"]["parameters"] > 0.05
    assert said["costs"]["parameters"]["ratio"] > said["kl"]["measured_range"]["parameters"][1]
    assert said["kl"]["why"][0].startswith("ratio of parameters 0.2")
    assert f"{said['kl']['extrapolation']:.4f} (extrapolation)" in outcome.output
    assert said["kl"]["why"][0] in " ".join(outcome.output.split())
    assert f"{said['kl']['distance']['parameters']:+.4f}" in outcome.output


def test_evaluate_and_export_take_it(
    allocated: Path,
    cli: Cli,
    checkpoint_folder: Path,
    store_and_tracking: list[str],
    tmp_path: Path,
) -> None:
    """Compensated as the run was; the original run is not needed any more."""
    run = shutil.copytree(allocated, tmp_path / "original")
    solved = cli("solve", f"run={run}", "search.target_ratio=0.15")
    shutil.rmtree(run)
    given = [f"shape={solved.folder}/shape.json", f"model.path={checkpoint_folder}"]
    exported = cli("export", *given, folder="exported")
    assert exported.status == 0, exported.output
    manifest = exported.read("multipruner.json")
    assert manifest["shape"] == solved.read("shape.json")["text"]
    assert manifest["status"] == "verified"
    tasks = ["evaluation.tasks=[]", "evaluation.cost=true", "evaluation.cost_rounds=1"]
    measured = cli("evaluate", *given, *tasks, *store_and_tracking, folder="measured")
    assert measured.status == 0, measured.output
    assert measured.evaluation["shape"] == manifest["shape"]
    assert measured.evaluation["fingerprints"]["channel_order"] == manifest["channel_order"]
    assert (
        measured.evaluation["ratio"] == solved.read("solution.json")["costs"]["parameters"]["ratio"]
    )


@pytest.mark.parametrize("solved", [True, False], ids=["a solution", "a search"])
def test_a_shape_is_of_one_model(
    solve: Solve, cli: Cli, allocated: Path, checkpoint_folder: Path,
    store_and_tracking: list[str], tmp_path: Path, *, solved: bool,
) -> None:  # fmt: skip
    """Another of the same sizes would be taken for it: the shape fits."""
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    folder = solve("search.target_ratio=0.15").folder if solved else allocated
    given = [f"shape={folder}/shape.json", f"model.path={other}"]
    for command, words in (("export", []), ("evaluate", ["evaluation.tasks=[]"])):
        places = store_and_tracking if command == "evaluate" else []
        outcome = cli(command, *given, *words, *places)
        assert outcome.status == 2, outcome.output
        assert f"model.path: {other} (fingerprint " in outcome.output
        assert f"is not the model that {folder}/shape.json was found for" in outcome.output
        assert not outcome.folder.exists()


def test_the_order_and_the_statistics_lie_beside_it(solve: Solve, allocated: Path) -> None:
    solved = solve("search.target_ratio=0.15")
    for name in ("channel_order.safetensors", "statistics.safetensors"):
        assert (solved.folder / name).read_bytes() == (allocated / name).read_bytes()
    assert (solved.folder / "statistics.safetensors").samefile(allocated / "statistics.safetensors")


def test_a_folder_belongs_to_one_solution(solve: Solve) -> None:
    """The same again is welcome; another target would leave what was measured of the first."""
    first, again, other = (
        solve(f"search.target_ratio={ratio}") for ratio in ("0.15", "0.15", "0.18")
    )
    assert (first.status, again.status, other.status) == (0, 0, 2)
    assert "belongs to another run" in other.output
    assert other.read("solution.json")["targets"] == {"search.target_ratio": 0.15}


def test_nothing_is_written_where_one_of_several_has_no_place(solve: Solve) -> None:
    first = solve("search.target_ratio=[0.1,0.15]")
    assert first.read("run.json")["identity"] == {"kind": "solutions"}
    more = solve("search.target_ratio=[0.1,0.12]")
    assert more.status == 0, more.output
    before = sorted(first.folder.rglob("*"))
    taken = solve("search.target_ratio=[0.06,0.15]", "search.whole_attention=true")
    assert taken.status == 2
    assert f"{first.folder}/target_ratio_0.15 belongs to another run" in taken.output
    assert sorted(first.folder.rglob("*")) == before, "no empty folder either"


def test_the_folder_of_something_else_is_not_a_place_for_several(
    cli: Cli, allocated: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(allocated, tmp_path / "run")
    outcome = cli("solve", f"run={allocated}", "search.target_ratio=[0.1,0.15]", folder="run")
    assert outcome.status == 2, outcome.output
    assert f"output_dir: {run} belongs to another run" in outcome.output
    assert not list(run.glob("target_ratio_*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "search.target_ratio: missing; give it, or one or more of search.target.parameters"),
        (("search.target_ratio=1.5",), "search.target_ratio: 1.5; it is removed / all parameters"),
        (
            ("search.target_ratio=0.1", "search.target.parameters=0.1"),
            "search.target_ratio, search.target.parameters: both are given",
        ),
        (("search.target_ratio=0.1", "search.width_multiple=0"), "search.width_multiple: 0;"),
        (("search.target_ratio=0.1", "search.shape_constraint=x"), "search.shape_constraint: 'x'"),
        (("search.target_ratio=0.7",), "search.target_ratio: 0.7 is out of reach; the smallest"),
        (
            ("search.target_ratio=[0.1,0.7]", "search.whole_attention=true"),
            "without search.whole_attention=true); lower the target",
        ),
        (
            ("search.target_rato=[0.1,0.2]",),
            "search.target_rato: no such option; did you mean search.target_ratio?",
        ),
        (("search.target_ratio=0.1", "model.path=[a,b]"), "model.path: no such option"),
        (
            ("search.target_ratio=0.1", "search.width_multiple=[a,b]"),
            "error: search.width_multiple: Value 'b' of type 'str' could not be converted to "
            "Integer (point width_multiple_b)",
        ),
        (("search.target_ratio=[1.5,2.5]",), "error: search.target_ratio: 2.5; it is removed"),
        (
            ("search.target.kv_cache=0.1", "search.shape_constraint=deployable"),
            "search.shape_constraint=deployable: the MLP of layer 0 was measured at",
        ),
    ],
)  # fmt: skip
def test_bad_input(solve: Solve, words: tuple[str, ...], message: str) -> None:
    outcome = solve(*words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output
    assert not outcome.folder.exists(), "something was written"


def test_runs_without_a_table(cli: Cli, undisturbed: Outcome, tmp_path: Path) -> None:
    outcome = cli("solve", f"run={undisturbed.folder}", "search.target_ratio=0.2")
    assert outcome.status == 2
    assert "has no allocation.json, so that no table was measured" in outcome.output
    missing = cli("solve", f"run={tmp_path}", "search.target_ratio=0.2")
    assert missing.status == 2
    assert "run.json" in missing.output


def test_a_run_that_lost_its_statistics(cli: Cli, allocated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(allocated, tmp_path / "copy")
    (folder / "statistics.safetensors").unlink()
    outcome = cli("solve", f"run={folder}", "search.target_ratio=0.15")
    assert outcome.status == 2
    assert "has no statistics.safetensors" in outcome.output


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": []},
        {"rounds": [{"base": "3x48*4"}]},
        {"rounds": [{"changes": [{"layer": 9, "unit": "kv_heads", "size": 2, "kl": 0.1}]}]},
        {"rounds": [{"changes": [{"layer": 0, "unit": "hats", "size": 2, "kl": 0.1}]}]},
        None,
    ],
    ids=str,
)
def test_a_damaged_table(
    cli: Cli, allocated: Path, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    table = shutil.copytree(allocated, tmp_path / "copy") / "allocation.json"
    data = json.loads(table.read_text())
    if change is None:
        table.write_text("{")
    elif change == {"rounds": [{"base": "3x48*4"}]}:
        table.write_text(json.dumps(data | change))
    else:
        whole = [data["rounds"][0] | each for each in change["rounds"]]
        table.write_text(json.dumps(data | {"rounds": whole}))
    outcome = cli("solve", f"run={table.parent}", "search.target_ratio=0.15")
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    assert f"{table} is damaged: " in error


def test_a_shape_that_measured_better_than_the_sum_is_taken(
    cli: Cli, allocated: Path, tmp_path: Path
) -> None:
    """Where it keeps the target and the constraints."""
    folder = tmp_path / "run"
    shutil.copytree(allocated, folder)
    run = json.loads((folder / "allocation.json").read_text())
    last = run["rounds"][-1]
    better = "3x48 3x40 3x24 2x24"
    kl = -0.5 * last["base_kl"]
    last["solutions"].append({"shape": better, "predicted_kl": 0.0, "kl": kl})
    (folder / "allocation.json").write_text(json.dumps(run))
    taken = cli("solve", f"run={folder}", "search.target_ratio=0.12", folder="taken")
    assert taken.read("solution.json")["shape"] == better
    assert taken.read("solution.json")["kl"]["measured"] == pytest.approx(0.5 * last["base_kl"])
    for number, words in enumerate((["0.12", "search.width_multiple=16"], ["0.155"])):
        other = cli(
            "solve", f"run={folder}", f"search.target_ratio={words[0]}", *words[1:],
            folder=f"other{number}",
        )  # fmt: skip
        assert other.status == 0, other.output
        assert other.read("solution.json")["shape"] != better


def test_whole_blocks_from_a_table_whose_groups_are_whole(
    cli: Cli, checkpoint_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    """Of 48 channels: from 24, one group down is none and one group up is all."""
    words = tiny_search(
        checkpoint_folder, token_file, "search.target_ratio=0.12", "search.distribution=[0,1,1]",
        "search.mlp_group_channels=24",
    )  # fmt: skip
    run = searched(tmp_path, "search=allocation", *words).folder
    outcome = cli("solve", f"run={run}", "search.target_ratio=0.2", "search.whole_blocks=true")
    assert outcome.status == 0, outcome.output
    shape = ModelShape.from_json(outcome.read("shape.json"))
    dense = Accounting(Checkpoint(checkpoint_folder).config()).dense
    for mine, whole in zip(shape.layers, dense.layers, strict=True):
        assert mine.kv_heads in (0, whole.kv_heads)
        assert mine.mlp_channels in (0, whole.mlp_channels)
    assert shape != dense
    free = cli("solve", f"run={run}", "search.target_ratio=0.2", folder="free")
    assert free.read("solution.json")["shape"] != shape.text


def test_the_uniform_shape_of_the_target_counts_among_what_was_measured(
    cli: Cli, checkpoint_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    """With a table around another ratio, it is in no round."""
    words = tiny_search(
        checkpoint_folder, token_file, "search.target_ratio=0.1", "search.distribution=[0,1,1]",
        "search.mlp_group_channels=8", "search.table_ratio=0.05",
    )  # fmt: skip
    table = searched(tmp_path, "search=allocation", *words).folder / "allocation.json"
    run = json.loads(table.read_text())
    assert run["start"] != run["rounds"][0]["base"]
    better = 0.5 * run["kl"]
    table.write_text(json.dumps(run | {"start_kl": better}))
    taken = cli("solve", f"run={table.parent}", "search.target_ratio=0.1").read("solution.json")
    assert taken["shape"] == run["start"]
    assert taken["kl"]["measured"] == pytest.approx(better)


def test_what_fits_into_so_many_bytes(solve: Solve, cli: Cli, checkpoint_folder: Path) -> None:
    """And the weights of an export are as large as was said, but for the header of the file."""
    load = ("memory.context_length=100", "memory.batch_size=2", "memory.dtype=float32")
    outcome = solve("search.target.memory=380kB", *load)
    assert outcome.status == 0, outcome.output
    said = outcome.read("solution.json")
    assert said["targets"] == {"search.target.memory": "380kB"}
    weights, cache = (said["memory"][part]["pruned"] for part in ("weights", "kv_cache"))
    assert said["costs"]["memory"]["pruned"] == weights + cache <= 380_000
    assert cache < said["memory"]["kv_cache"]["dense"] == 2 * 100 * 768
    assert "memory: weights and KV cache of 2 x 100 tokens (float32)" in outcome.output
    assert not {"memory"} & said["kl"]["distance"].keys(), "which no load should change"
    exported = cli(
        "export", f"shape={outcome.folder}/shape.json", f"model.path={checkpoint_folder}",
        "format=transformers", "dtype=float32", folder="exported",
    )  # fmt: skip
    assert exported.status == 0, exported.output
    [file] = exported.folder.glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == weights
    other = solve("search.target.memory=380kB", "memory.context_length=99", *load[1:])
    assert other.status == 2
    assert "belongs to another run" in other.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search.target.memory=60kB",), "memory: 60 kB is out of reach; the smallest sizes"),
        (("search.target.memory=60kB",), "; allow more, or "),
        (("search.target.memory=1GB",), "memory: 1GB; the dense model takes 148.3 kB, so that"),
        (("search.target.memory=1G",), "search.target.memory: 1G; a size is a number above 0"),
        (("search.target.memory=1",), "memory: 1; it is removed / dense, above 0 and below 1, or"),
        (("search.target.memory=0.1", "memory.dtype=int8"), "memory.dtype: 'int8'; one of float32"),
        (("search.target.memory=0.1", "memory.batch_size=0"), "memory.batch_size: 0; at least 1"),
    ],
)
def test_bad_memory(solve: Solve, words: tuple[str, ...], message: str) -> None:
    outcome = solve(*words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output
    assert not outcome.folder.exists(), "something was written"
