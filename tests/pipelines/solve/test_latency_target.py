"""Targets in time, by a table of latencies that is written by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.costs.accounting import Accounting
from pruning.costs.latency import LatencyTable, Phase
from pruning.costs.target import TIMED, CostName
from pruning.models.checkpoint import Checkpoint
from pruning.search.prediction import MeasuredRound
from pruning.shape import ModelShape
from tests.pipelines.solve.conftest import Solve
from tests.pruning.costs.tables import MLP, written

WriteTable = Callable[..., Path]
DENSE = ModelShape.dense(4, 3, 48)
OF: dict[CostName, Phase | None] = {"latency": None, "prefill": "prefill", "decode": "decode"}


@pytest.fixture
def write(tmp_path: Path, checkpoint_folder: Path) -> WriteTable:
    """`write()` is the path of a table; `fingerprint`, `kv_heads` and `mlp_channels` take
    the place of what it has.
    """

    def saved(**changes: object) -> Path:
        return written(tmp_path / "my (1) table, ü.json", checkpoint_folder, **changes)

    return saved


def shapes_of(found: MeasuredRound) -> dict[ModelShape, float]:
    """Predicted KL of every choice of the sizes that a round measured."""
    blocks = list(found.table.changes)
    choices = {}
    for sizes in itertools.product(*(found.table.changes[block] for block in blocks)):
        shape, kl = found.table.base, found.base_score
        layers = [[layer.kv_heads, layer.mlp_channels] for layer in shape.layers]
        for (layer, unit), size in zip(blocks, sizes, strict=True):
            layers[layer][unit == "mlp_channels"] = size
            kl += found.table.changes[layer, unit][size]
        text = " ".join(f"{heads}x{channels}" for heads, channels in layers)
        choices[ModelShape.parse(text)] = kl
    return choices


def accounting_of(folder: Path) -> Accounting:
    return Accounting(Checkpoint(folder).config())


def predicted(said: dict[str, Any]) -> float:
    """The KL of a solution, however it is known."""
    words = ("measured", "interpolation", "extrapolation")
    return float(next(said["kl"][word] for word in words if word in said["kl"]))


def round_of(run: Path, said: dict[str, Any]) -> MeasuredRound:
    """The round of the run that a solution is by."""
    number = said["kl"]["round"]
    data = json.loads((run / "allocation.json").read_text())
    return MeasuredRound.of(number, data["rounds"][number - 1])


@pytest.mark.parametrize(
    "targets",
    [
        {"latency": 0.12},
        {"prefill": 0.2},
        {"decode": 0.1},
        {"latency": 0.1, "parameters": 0.12},
        {"prefill": 0.1, "decode": 0.15},
    ],
    ids=str,
)
def test_the_best_shape_that_is_fast_enough(
    solve: Solve, allocated: Path, checkpoint_folder: Path, write: WriteTable,
    targets: dict[str, float],
) -> None:  # fmt: skip
    """Against every shape that the run's table has, and those that measured better than its sum."""
    words = [f"search.target.{name}={ratio}" for name, ratio in targets.items()]
    outcome = solve(*words, f"latency={write()}")
    assert outcome.status == 0, outcome.output
    said = outcome.read("solution.json")
    latencies, accounting = LatencyTable.load(write()), accounting_of(checkpoint_folder)

    def keeps(shape: ModelShape) -> bool:
        saved: dict[str, float] = {"parameters": accounting.ratio(shape)}
        for name in TIMED:
            taken, whole = (latencies.seconds(each, OF[name]) for each in (shape, DENSE))
            saved[name] = 1 - taken / whole
        return all(saved[name] >= ratio - 1e-12 for name, ratio in targets.items())

    found = round_of(allocated, said)
    kept = {shape: kl for shape, kl in shapes_of(found).items() if keeps(shape)}
    assert 1 < len(kept) < len(shapes_of(found))
    best = min(kept, key=kept.__getitem__)
    measured = {shape: kl for shape, kl in found.measured.items() if keeps(shape)}
    least = min([measured.get(best, kept[best]), *measured.values()])
    assert predicted(said) == pytest.approx(least, abs=1e-9)
    assert keeps(ModelShape.from_json(outcome.read("shape.json")))


def test_a_size_that_is_smaller_and_slower_is_not_taken(solve: Solve, write: WriteTable) -> None:
    """Of 24 channels, which a target of parameters takes."""
    smaller = solve("search.target.parameters=0.12", folder="smaller").read("shape.json")
    faster = solve("search.target.latency=0.1", f"latency={write()}").read("shape.json")
    assert 24 in {layer["mlp_channels"] for layer in smaller["layers"]}
    assert not {24, 40} & {layer["mlp_channels"] for layer in faster["layers"]}


def test_a_solution_says_what_it_takes_by_which_table(solve: Solve, write: WriteTable) -> None:
    path = write()
    outcome = solve("search.target.latency=0.12", f"latency={path}")
    said, shape = outcome.read("solution.json"), ModelShape.from_json(outcome.read("shape.json"))
    latencies = LatencyTable.load(path)
    assert said["targets"] == {"search.target.latency": 0.12}
    for name in TIMED:
        dense, pruned = (latencies.nanoseconds(each, OF[name]) for each in (DENSE, shape))
        cost = {"dense": dense, "pruned": pruned, "ratio": (dense - pruned) / dense}
        assert said["costs"][name] == cost
    assert said["latency"]["predicted_seconds"] == {
        "prefill": latencies.seconds(shape, "prefill"),
        "decode": latencies.seconds(shape, "decode"),
    }
    assert said["latency"]["table"] == str(path)
    assert said["latency"]["arithmetic"]["device"] == "cpu of a test"
    assert f"{said['costs']['latency']['ratio']:.4f}" in outcome.output
    plain = solve("search.target_ratio=0.12", folder="plain").read("solution.json")
    assert "latency" not in plain
    assert not {"latency", "prefill", "decode"} & plain["costs"].keys()


def test_a_phase_that_is_all_noise_does_not_hinder_the_others(
    solve: Solve, write: WriteTable
) -> None:
    path = write(rest=(5, -100))
    outcome = solve("search.target.prefill=0.2", f"latency={path}")
    assert outcome.status == 0, outcome.output
    assert not {"latency", "decode"} & outcome.read("solution.json")["costs"].keys()
    refused = solve("search.target.decode=0.1", f"latency={path}", folder="refused")
    assert refused.status == 2
    assert (
        f"search.target.decode: 0.1, but by {path} the dense model takes no time for it"
        in (refused.errors[0])
    )


def test_how_much_a_prediction_is_worth_depends_on_no_device(
    solve: Solve, write: WriteTable
) -> None:
    """The same shape, with and without a table."""
    words = ("search.target_ratio=0.2", "search.target.decode=0.01")
    timed = solve(*words, f"latency={write()}").read("solution.json")
    counted = solve(words[0], folder="counted").read("solution.json")
    assert timed["shape"] == counted["shape"]
    assert timed["costs"].keys() > counted["costs"].keys()
    assert timed["kl"] == counted["kl"]


def test_sizes_that_are_not_in_the_table_are_said(solve: Solve, write: WriteTable) -> None:
    whole = write(mlp_channels={size: (size, size) for size in range(0, 49, 4)})
    quiet = solve("search.target.latency=0.1", f"latency={whole}", folder="quiet")
    assert quiet.status == 0, quiet.output
    assert "in proportion" not in quiet.output
    sparse = write(
        mlp_channels={size: (size, size) for size in (0, 16, 48)},
        kv_heads={size: (size, size) for size in (0, 1, 3)},
    )
    outcome = solve("search.target.latency=0.1", f"latency={sparse}")
    said = " ".join(outcome.output.split())
    assert said.count("in proportion") == 1
    assert "attentions of 2 KV heads; MLPs of 4, 8, 12, 20, 24, " in said
    assert "multipruner latency widths=[4,8,12,16,20,24,28,32,36,40,44,48]" in said


def test_a_folder_is_by_one_table(solve: Solve, write: WriteTable) -> None:
    words = ("search.target.latency=0.12", f"latency={write()}")
    first, again = solve(*words), solve(*words)
    assert (first.status, again.status) == (0, 0), again.output
    write(mlp_channels=MLP | {16: (2, 1)})
    other = solve(*words)
    assert other.status == 2
    assert "belongs to another run" in other.output


def test_several_targets_in_time_have_folders_of_their_own(solve: Solve, write: WriteTable) -> None:
    outcome = solve("search.target.latency=[0.05,0.12]", f"latency={write()}")
    assert outcome.status == 0, outcome.output
    for ratio in (0.05, 0.12):
        said = outcome.read(f"latency_{ratio:g}/solution.json")
        assert said["costs"]["latency"]["ratio"] >= ratio


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (
            ("search.target.latency=0.1", "search.target.decode=0.1"),
            None,
            "search.target.latency, search.target.decode: given without a table; give latency=FILE",
        ),
        (("search.target_ratio=0.1",), {}, "ü.json, which has no effect without one or more"),
        (("search.target.latency=1.5",), {}, "search.target.latency: 1.5; it is removed / dense"),
        (("search.target.latency=0.8",), {}, "search.target.latency: 0.8 is out of reach; the"),
        (("search.target.latency=0.1",), {"fingerprint": "0" * 32}, "(fingerprint 00000000"),
        (
            ("search.target.latency=0.1",),
            {"mlp_channels": {size: MLP[size] for size in (32, 40, 48)}},
            "has MLPs of 32 to 48 channels, and the run in",
        ),
        (
            ("search.target.latency=0.1",),
            {"kv_heads": {2: (1, 1), 3: (2, 2)}},
            "has attentions of 2 to 3 KV heads, and the run in",
        ),
        (
            ("search.target.latency=0.1",),
            {"rest": (-100, 1)},
            "search.target.latency: 0.1, but by ",
        ),
    ],
)  # fmt: skip
def test_bad_input(
    solve: Solve, write: WriteTable, words: tuple[str, ...], changes: dict[str, Any] | None,
    message: str,
) -> None:  # fmt: skip
    given = [] if changes is None else [f"latency={write(**changes)}"]
    outcome = solve(*words, *given)
    assert outcome.status == 2, outcome.output
    assert message in outcome.errors[0]
    assert not outcome.folder.exists(), "something was written"


def test_a_table_that_is_missing_or_damaged(solve: Solve, write: WriteTable) -> None:
    path = write()
    outcome = solve("search.target.latency=0.1", f"latency={path}.gone")
    assert outcome.status == 2
    [error] = outcome.errors
    assert f"latency: {path}.gone is no file; give the latency.json" in error
    data = json.loads(path.read_text())
    del data["rest"]
    path.write_text(json.dumps(data))
    outcome = solve("search.target.latency=0.1", f"latency={path}")
    assert outcome.status == 2
    [error] = outcome.errors
    assert f"latency: {path} is damaged: it has no rest" in error
