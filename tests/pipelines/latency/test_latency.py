"""A table measured by the command, what it shows, and input that it refuses. Times are never
asserted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pipelines.latency.picture import latency_figure
from pipelines.latency.table import as_table
from pruning.costs.latency import LatencyTable
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape
from tests.conftest import ROOT, tiny_config, tiny_model
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.pruning.costs.tables import exact, table

Measure = Callable[..., Outcome]
QUICK = ("cluster=inline", "prompt_tokens=6", "new_tokens=2", "rounds=2")


@pytest.fixture
def measure(cli: Cli, checkpoint_folder: Path) -> Measure:
    """`measure("widths=[16]")` measures the tiny model."""

    def run(*words: str, folder: str = "measured") -> Outcome:
        return cli("latency", f"model.path={checkpoint_folder}", *QUICK, *words, folder=folder)

    return run


def test_a_table_says_what_it_is_of(measure: Measure, checkpoint_folder: Path) -> None:
    outcome = measure("model.dtype=float32", "batch_size=2", "widths=[16,40]")
    assert outcome.status == 0, outcome.output
    found = LatencyTable.load(outcome.folder / "latency.json")
    assert found.fingerprint == Checkpoint(checkpoint_folder).fingerprint()
    assert (found.model, found.dtype, found.depth) == ("tiny-llama", "float32", 4)
    settings = found.settings
    assert (settings.batch_size, settings.prompt_tokens, settings.new_tokens) == (2, 6, 2)
    assert found.arithmetic["device"].startswith("cpu")
    assert (found.arithmetic["num_threads"], found.arithmetic["attention"]) == (1, "sdpa")
    assert found.arithmetic.keys() >= {"torch", "transformers"}
    assert sorted(found.times.mlp_channels) == [0, 16, 40, 48]
    assert sorted(found.times.kv_heads) == [0, 1, 2, 3]
    with Image.open(outcome.folder / "latency.png") as picture:
        assert picture.size == (1350, 960)
    assert f"latency={outcome.folder}/latency.json" in outcome.output
    assert "timing 8 models of up to 4 layers, 2 rounds" in outcome.output
    assert (outcome.folder / "latency.log").read_text()


def test_a_folder_is_for_one_load_and_may_be_measured_again(measure: Measure) -> None:
    first, again = measure("width_step=24"), measure("width_step=24", "rounds=1")
    assert (first.status, again.status) == (0, 0), again.output
    assert again.read("latency.json")["settings"]["rounds"] == 1
    other = measure("width_step=24", "prompt_tokens=7")
    assert other.status == 2
    assert "prompt_tokens: 6 there, 7 here" in other.output


@pytest.mark.parametrize(
    ("field", "value"),
    [("device", "cuda of a test"), ("processor", "other"), ("num_threads", 9), ("attention", "e")],
)
def test_the_table_of_another_device_is_not_replaced(
    measure: Measure, field: str, value: object
) -> None:
    first = measure("widths=[24]", "rounds=1")
    path = first.folder / "latency.json"
    data = first.read("latency.json")
    data["arithmetic"][field] = value
    path.write_text(json.dumps(data))
    other = measure("widths=[24]", "rounds=1")
    assert other.status == 2
    assert f"has the table of another device ({field}: {value} there, " in other.output
    assert json.loads(path.read_text()) == data


@pytest.mark.ray
@pytest.mark.slow
def test_one_evaluator_of_a_cluster_measures(measure: Measure) -> None:
    outcome = measure("cluster=local", "cluster.num_gpus_per_evaluator=0", "widths=[24]")
    assert outcome.status == 0, outcome.output
    assert sorted(LatencyTable.load(outcome.folder / "latency.json").times.mlp_channels) == [
        0,
        24,
        48,
    ]


def test_models_of_other_architectures_are_timed_by_whole_blocks(cli: Cli, tmp_path: Path) -> None:
    tiny_model(tiny_config("granite")).save_pretrained(tmp_path / "granite")
    words = ("latency", "model.path=granite", *QUICK)
    outcome = cli(*words)
    assert outcome.status == 0, outcome.output
    assert [each["size"] for each in outcome.read("latency.json")["mlp_channels"]] == [0, 48]
    refused = cli(*words, "widths=[16]", folder="refused")
    assert refused.status == 2
    assert "architecture 'granite' is pruned by whole blocks only" in refused.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("widths=[49,8]",), "widths: 49; the MLPs have 48 channels"),
        (("widths=[-1]",), "widths: -1; at least 0"),
        (("widths=[8]", "width_step=8"), "widths, width_step: both are given"),
        (("width_step=0",), "width_step: 0; at least 1"),
        (("rounds=0",), "rounds: 0; at least 1"),
        (
            ("prompt_tokens=250", "new_tokens=7"),
            "prompt_tokens, new_tokens: 250 + 7, above this model's context of 256 tokens",
        ),
        (("cluster=local", "cluster.num_evaluators=2"), "cluster.num_evaluators: 2, which has no"),
        (("cluster=local", "cluster.num_gpus_per_evaluator=2"), "blocks are timed on one GPU"),
        (("model.path=/nowhere",), "model.path: "),
        (("width_steps=8",), "width_steps: no such option; did you mean width_step?"),
    ],
)  # fmt: skip
def test_bad_input(measure: Measure, words: tuple[str, ...], message: str) -> None:
    outcome = measure(*words)
    assert outcome.status == 2, outcome.output
    assert message in outcome.output
    assert not outcome.folder.exists(), "something was written"


def test_a_model_of_one_layer_is_refused(cli: Cli, tmp_path: Path) -> None:
    tiny_model(tiny_config("llama", num_hidden_layers=1)).save_pretrained(tmp_path / "one")
    outcome = cli("latency", "model.path=one", *QUICK, "widths=[50]")
    assert outcome.status == 2
    assert [line.partition(";")[0] for line in outcome.errors] == [
        "error: model.path: one has one layer",
        "error: widths: 50",
    ]


BY_HAND = table(
    {0: (0, 0), 3: (4, 6)}, {0: (0, 0), 16: (10, 1), 32: (12, 1), 40: (9, 5), 48: (14, 5)}
)


def test_a_person_reads_milliseconds_shares_and_marks() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(as_table(BY_HAND, ModelShape.dense(2, 3, 48)))
    lines = capture.get().splitlines()
    [slow] = [line for line in lines if " 32 " in line]
    cells = [cell.strip() for cell in slow.split("│")[1:-1]]
    # The dense model takes 5 + 7 + 2 x (14 + 5 + 4 + 6) = 70 ms.
    assert cells == ["", "32", "12 (12 to 12)", "1 (1 to 1)", f"{13 / 70:.4f}", "prefill"]
    [whole] = [line for line in lines if "dense model " in line and "41" in line]
    assert [cell.strip() for cell in whole.split("│")[1:-1]] == [
        "dense model", "", "41", "29", "1", ""
    ]  # fmt: skip


def test_a_person_reads_what_whole_models_took() -> None:
    """The dense model as predicted for 41 and 29 ms, another for 5 + 10 + 2 x 4 and 7 + 1 + 12."""
    dense, pruned = ModelShape.dense(2, 3, 48), ModelShape.parse("3x16 3x0")
    wholes = {dense.text: exact(50, 25), pruned.text: exact(46, 10)}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(as_table(replace(BY_HAND, whole_models=wholes), dense))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capture.get().splitlines()
        if "│" in line
    ]
    assert cells[-6:] == [
        ["dense model", "", "41", "29", "1", ""],
        ["measured", "", "50 (50 to 50)", "25 (25 to 25)", "", ""],
        ["error", "", "-18.0%", "+16.0%", "", ""],
        ["pruned model", "", "23", "20", f"{43 / 70:.4f}", ""],
        ["measured", "", "46 (46 to 46)", "10 (10 to 10)", "", ""],
        ["error", "", "-50.0%", "+100.0%", "", ""],
    ]
    assert "error: predicted / measured - 1" in " ".join(capture.get().split())


def test_small_layers_run_in_longer_chains(cli: Cli, tmp_path: Path) -> None:
    """All twelve of a tiny model, whose weights any cache holds."""
    tiny_model(tiny_config("llama", num_hidden_layers=12)).save_pretrained(tmp_path / "deep")
    outcome = cli("latency", "model.path=deep", *QUICK, "widths=[24]", "rounds=1")
    assert outcome.status == 0, outcome.output
    assert outcome.read("latency.json")["depth"] == 12
    assert "models of up to 12 layers" in outcome.output


def test_the_picture_marks_what_is_not_faster(tmp_path: Path) -> None:
    """Against the same times without a step: the mark's colour is in one of both alone."""
    steady = table({0: (0, 0), 3: (4, 6)}, {0: (0, 0), 16: (1, 1), 48: (14, 5)})
    marked = []
    for number, each in enumerate((BY_HAND, steady)):
        path = tmp_path / f"{number}.png"
        latency_figure(each).savefig(path)
        with Image.open(path) as picture:
            colors = {color[:3] for _, color in picture.getcolors(2**24) or []}
        marked.append((0xD5, 0x5E, 0x00) in colors)
    assert marked == [True, False]


def test_the_picture_leaves_pyplot_to_the_program() -> None:
    """In a process of its own, where nothing else has imported it."""
    code = "import sys, pipelines.latency.picture; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_file_is_plain_json_with_marks(measure: Measure) -> None:
    outcome = measure("widths=[24]")
    data = json.loads((outcome.folder / "latency.json").read_text())
    for unit in ("kv_heads", "mlp_channels"):
        assert data[unit][-1]["costs_speed"] == [], "nothing is larger"
        for each in data[unit]:
            assert each["prefill"].keys() == {"median", "lowest", "highest", "standard_error"}
