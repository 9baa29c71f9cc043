"""Uniform widths with compensation, from the command line to a verified checkpoint."""

from __future__ import annotations

import json

import pytest

from pruning.export.manifest import check_folder
from pruning.importance.channel_order import STATISTICS, ChannelOrder
from pruning.shape import ModelShape
from tests.pipelines.conftest import Cli, Search

UNIFORM = ("search=uniform", "search.distribution=[0,1,0]", "search.target_ratio=0.12")
COMPENSATED = "search.compensation=least_squares"


def test_every_inner_layer_has_nearly_the_same_width(search: Search) -> None:
    outcome = search(*UNIFORM, "search.mlp_group_channels=8")
    assert outcome.status == 0, outcome.output
    shape = ModelShape.parse(outcome.summary["shape"])
    widths = [layer.mlp_channels for layer in shape.layers]
    assert widths[0] == widths[-1] == 48
    assert 0 <= max(widths[1:-1]) - min(widths[1:-1]) <= 8
    assert outcome.summary["ratio"] >= 0.12
    steps = [json.loads(line) for line in outcome.trajectory]
    assert {step["stage"] for step in steps} == {"mlp_channels"}
    assert [len(step["candidates"]) for step in steps] == [1] * len(steps), "nothing is searched"
    planned = outcome.summary["plan"]["steps"]["mlp_channels"]
    assert planned == {"min": len(steps), "max": len(steps)}
    assert outcome.summary["identity"]["search.compensation"] == "least_squares"


def test_one_width_for_all_layers(search: Search) -> None:
    """The target is met before the last step; the search goes to its end all the same."""
    outcome = search(*UNIFORM, "search.shape_constraint=one_width", "search.mlp_group_channels=4")
    assert outcome.status == 0, outcome.output
    shape = ModelShape.parse(outcome.summary["shape"])
    assert len({layer.mlp_channels for layer in shape.layers}) == 1
    assert shape.layers[0].mlp_channels < 48
    steps = [json.loads(line) for line in outcome.trajectory]
    assert steps[-1]["ratio"] > steps[-2]["ratio"] > 0.12
    assert {step["stage"] for step in steps} == {"mlp_channels"}
    planned = outcome.summary["plan"]["steps"]["mlp_channels"]
    assert planned == {"min": len(steps), "max": len(steps)}


def test_compensation_changes_scores_and_nothing_else_of_the_path(search: Search) -> None:
    with_it = search(*UNIFORM, folder="with")
    without = search(*UNIFORM, "search.compensation=none", folder="without")
    assert with_it.status == without.status == 0, with_it.output + without.output
    assert with_it.summary["shape"] == without.summary["shape"]
    assert with_it.summary["perplexity"] != without.summary["perplexity"]
    assert with_it.summary["perplexity"]["width"]["dense"] == pytest.approx(
        without.summary["perplexity"]["width"]["dense"], rel=1e-5
    )
    assert "search.compensation" not in without.summary["identity"]
    assert not (without.folder / STATISTICS).exists()


def test_two_evaluators_give_the_same_bytes(search: Search) -> None:
    one = search(*UNIFORM, folder="one")
    two = search(
        *UNIFORM, "cluster=local", "cluster.num_evaluators=2", "store.url=sqlite:///two.db",
        folder="two",
    )  # fmt: skip
    assert one.status == two.status == 0, one.output + two.output
    for name in (STATISTICS, "shape.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    orders = [ChannelOrder.load(run.folder / "channel_order.safetensors") for run in (one, two)]
    assert orders[0].fingerprint == orders[1].fingerprint
    assert one.trajectory == two.trajectory


def test_it_goes_on_from_its_folder(search: Search) -> None:
    whole = search(*UNIFORM, folder="whole")
    lines = (whole.folder / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (whole.folder / "trajectory.jsonl").write_text("".join(lines[:1]))
    again = search("resume=true", "cluster=inline", f"output_dir={whole.folder}", bare=True)
    assert again.status == 0, again.output
    assert again.summary["evaluations"]["scored"] == 0
    assert again.summary["shape"] == whole.summary["shape"]


def test_the_export_computes_what_was_scored(search: Search, cli: Cli) -> None:
    """The export's own check compares with the masked, compensated model; evaluation agrees."""
    outcome = search(*UNIFORM)
    exported = cli("export", f"run={outcome.folder}", "format=transformers", folder=None)
    assert exported.status == 0, exported.output
    manifest = check_folder(outcome.folder / "transformers")
    assert manifest["status"] == "verified"
    order = ChannelOrder.load(outcome.folder / "channel_order.safetensors")
    assert manifest["channel_order"] == order.fingerprint
    assert order.compensation is not None


def test_the_published_search_can_be_compensated(search: Search) -> None:
    outcome = search(COMPENSATED)
    assert outcome.status == 0, outcome.output
    plain = search("search.compensation=none", folder="plain")
    assert outcome.summary["perplexity"] != plain.summary["perplexity"]
    assert (outcome.folder / STATISTICS).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("search.importance=l1",), "search.compensation: least_squares with search.importance=l1"),
        (("search.distribution=[1,1,0]",), "search.strategy=uniform narrows MLPs only"),
        (
            ("search.compensation=magic",),
            "search.compensation: 'magic'; one of none, least_squares",
        ),
        (("search.target_ratio=0.9",), "search.target_ratio: 0.9; MLPs of"),
        (
            ("search=multipruner", "search.shape_constraint=one_width"),
            "search.shape_constraint: one_width, which search.strategy=greedy does not keep",
        ),
    ],
)
def test_bad_input(search: Search, options: tuple[str, ...], message: str) -> None:
    outcome = search(*UNIFORM, *options)
    assert outcome.status == 2
    assert message in outcome.output


def test_what_a_lost_process_left_of_single_layers_goes(search: Search) -> None:
    """It was killed when all were in one file, and the order, too."""
    outcome = search(*UNIFORM)
    part = outcome.folder / "statistics.0.safetensors"
    part.write_bytes(b"a gigabyte")
    assert search("resume=true", f"output_dir={outcome.folder}", bare=True).status == 0
    assert not part.exists()


def test_lost_statistics_are_asked_for(search: Search, cli: Cli) -> None:
    outcome = search(*UNIFORM)
    (outcome.folder / STATISTICS).unlink()
    exported = cli("export", f"run={outcome.folder}", "format=transformers", folder=None)
    assert exported.status == 2
    assert "the statistics that this model is compensated with cannot be read" in exported.output


def test_one_width_exports_as_a_plain_checkpoint(search: Search, cli: Cli) -> None:
    """Without code, opened by the family's own class; the card says how it was found."""
    outcome = search(*UNIFORM, "search.shape_constraint=one_width")
    exported = cli("export", f"run={outcome.folder}", "format=transformers", folder=None)
    assert exported.status == 0, exported.output
    folder = outcome.folder / "transformers"
    manifest = check_folder(folder)
    assert manifest["status"] == "verified"
    assert manifest["needs_code"] is False
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    card = (folder / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "nearly every layer keeps the same number of MLP channels" in card
    assert "greedy" not in card
