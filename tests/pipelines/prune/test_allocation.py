"""`search=allocation` from the command line: rounds, a path to what they found, a checkpoint."""

from __future__ import annotations

import json

import pytest

from pruning.costs.accounting import Accounting
from pruning.models.checkpoint import Checkpoint
from pruning.search.allocation import Limit, Sensitivities, solve
from pruning.shape import ModelShape
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search

ALLOCATION = (
    "search=allocation", "search.distribution=[0,1,1]", "search.target_ratio=0.12",
    "search.mlp_group_channels=8",
)  # fmt: skip


@pytest.fixture
def found(search: Search) -> Outcome:
    outcome = search(*ALLOCATION)
    assert outcome.status == 0, outcome.output
    return outcome


def test_the_path_leads_to_the_allocation(found: Outcome) -> None:
    allocation = json.loads((found.folder / "allocation.json").read_text())
    steps = [json.loads(line) for line in found.trajectory]
    assert steps[-1]["shape"] == allocation["shape"] == found.summary["shape"]
    assert found.summary["ratio"] >= 0.12
    assert all(len(step["candidates"]) == 1 for step in steps)
    assert {step["token_set"] for step in steps} == {"block"}
    assert steps[-1]["perplexity"] == found.summary["perplexity"]["block"]["pruned"]
    assert allocation["kl"] < allocation["start_kl"], "no better than the uniform shape"
    assert found.summary["status"] == "target reached"


def test_every_round_is_the_optimum_of_what_it_measured(
    found: Outcome, checkpoint_folder: object
) -> None:
    """The table that is written gives the solution that was taken, solved again from the file."""
    accounting = Accounting(Checkpoint(checkpoint_folder).config())  # type: ignore[arg-type]
    most = 0.88 * accounting.num_dense_parameters
    rounds = json.loads((found.folder / "allocation.json").read_text())["rounds"]
    assert len(rounds) >= 1
    for each in rounds:
        changes: dict[tuple[int, str], dict[int, float]] = {}
        for change in each["changes"]:
            changes.setdefault((change["layer"], change["unit"]), {})[change["size"]] = change["kl"]
        table = Sensitivities(ModelShape.parse(each["base"]), changes)  # type: ignore[arg-type]
        limit = Limit("search.target_ratio", accounting.num_parameters, most)
        best = solve(table, [limit])
        predicted = min(solution["predicted_kl"] for solution in each["solutions"])
        assert best.predicted == pytest.approx(predicted, abs=1e-12)
        for solution in each["solutions"]:
            assert accounting.num_parameters(ModelShape.parse(solution["shape"])) <= most


@pytest.mark.parametrize("num_evaluators", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_evaluators_gives_the_same_bytes(
    search: Search, found: Outcome, num_evaluators: int
) -> None:
    several = search(
        *ALLOCATION, "cluster=local", f"cluster.num_evaluators={num_evaluators}",
        "store.url=sqlite:///other.db", folder="several",
    )  # fmt: skip
    assert several.status == 0, several.output
    assert several.summary["evaluations"]["scored"] > 50
    for name in ("allocation.json", "shape.json", "statistics.safetensors"):
        assert (several.folder / name).read_bytes() == (found.folder / name).read_bytes(), name
    assert several.trajectory == found.trajectory


def test_a_run_that_lost_everything_but_the_store_computes_nothing_again(
    search: Search, found: Outcome
) -> None:
    (found.folder / "allocation.json").unlink()
    (found.folder / "trajectory.jsonl").unlink()
    again = search("resume=true", "cluster=inline", f"output_dir={found.folder}", bare=True)
    assert again.status == 0, again.output
    assert again.summary["evaluations"]["scored"] == 0
    assert again.trajectory == found.trajectory


def test_kl_and_nll_of_one_shape_do_not_mix(search: Search, found: Outcome) -> None:
    """The uniform start was scored by KL; its NLL on the same text is another score."""
    uniform = search(
        "search=uniform", "search.distribution=[0,1,0]", "search.target_ratio=0.12",
        "search.mlp_group_channels=4", folder="uniform",
    )  # fmt: skip
    assert uniform.status == 0, uniform.output
    start = json.loads((found.folder / "allocation.json").read_text())
    assert start["start"] == uniform.summary["shape"]
    assert uniform.summary["perplexity"]["block"]["pruned"] > 2
    assert start["start_kl"] < 1


def test_mlps_alone(search: Search) -> None:
    outcome = search(*ALLOCATION, "search.distribution=[0,1,0]")
    assert outcome.status == 0, outcome.output
    shape = ModelShape.parse(outcome.summary["shape"])
    assert len({layer.kv_heads for layer in shape.layers}) == 1


def test_the_export_computes_what_was_measured(found: Outcome, cli: Cli) -> None:
    exported = cli("export", f"run={found.folder}", "format=transformers", folder=None)
    assert exported.status == 0, exported.output


def test_the_plan_holds(found: Outcome) -> None:
    planned = found.summary["plan"]
    taken = found.summary["taken"]
    assert taken["steps"]["mlp_channels"] + taken["steps"]["attention_heads"] <= sum(
        planned["steps"][stage]["max"] for stage in planned["steps"]
    )
    measured = found.summary["allocation"]["evaluations"]
    assert taken["evaluations"]["block"] == measured
    assert f"took {measured} " in found.output, "and no steps, of which there are none"
    assert planned["evaluations"]["block"]["min"] <= measured
    assert measured <= planned["evaluations"]["block"]["max"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("search.distribution=[1,1,0]",), "finds out how much each kind of block loses"),
        (("search.distribution=[0,0,1]",), "finds out how much each kind of block loses"),
        (("search.distribution=[0,52,4]",), "finds out how much each kind of block loses"),
        (("search.importance=l1",), "search.compensation: least_squares"),
        (("search.target_ratio=0.9",), "search.target_ratio: 0.9; MLPs of"),
    ],
)
def test_bad_input(search: Search, options: tuple[str, ...], message: str) -> None:
    outcome = search(*ALLOCATION, *options)
    assert outcome.status == 2
    assert message in outcome.output
    assert "search=uniform" not in outcome.output, "it was not asked for"
