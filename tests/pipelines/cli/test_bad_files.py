"""Files that hold something else than they should: one error, which names the file, from every
command that reads it, and status 2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli
from tests.tiny_search import tiny_search

COMMANDS = ("prune", "plan", "sweep", "evaluate", "export")


def on_model(cli: Cli, command: str, model: Path, arguments: list[str], run: Path) -> Outcome:
    """Each command with what it needs besides the model."""
    search = [word for word in arguments if not word.startswith("model.path=")]
    words = {
        "prune": search,
        "plan": [word for word in search if word.startswith(("search.", "calibration"))],
        "sweep": [*search[:-1], "search.target_ratio=[0.05,0.1]"],
        "evaluate": ["evaluation=perplexity", f"evaluation.texts=[{run}/text.txt]"],
        "export": [f"shape={run}/shape.json"],
    }[command]
    return cli(command, *words, f"model.path='{model}'", folder=f"of_{command}")


def one_error(outcome: Outcome, *says: str) -> None:
    assert outcome.status == 2, outcome.output
    [error] = outcome.errors
    for words in says:
        assert words in error, error
    assert "Traceback" not in outcome.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A shape and a text: what `export` and `evaluate` are given."""
    (tmp_path / "run").mkdir()
    layers = [{"kv_heads": 3, "mlp_channels": 48}] * 4
    (tmp_path / "run/shape.json").write_text(json.dumps({"layers": layers}))
    (tmp_path / "run/text.txt").write_text("the cat sat " * 500)
    return tmp_path / "run"


CONFIGS: list[tuple[bytes | dict[str, Any], str]] = [
    (b"[1, 2]", "it holds a list, and should hold an object"),
    (bytes(range(128, 256)), "can't decode"),
    ({"num_attention_heads": 0}, "num_attention_heads 0; sizes are above 0"),
    (b'"x"', "it holds a str"),
    (b"", "Expecting value"),
    ({"hidden_size": 0}, "hidden_size 0"),
    ({"num_hidden_layers": 0, "vocab_size": -1}, "num_hidden_layers 0, vocab_size -1"),
    ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
    ({"intermediate_size": 0}, "intermediate_size 0"),
    ({"hidden_size": "many"}, "describes no model"),
    ({"num_hidden_layers": None}, "describes no model"),
    ({"id2label": {"one": "x"}}, "describes no model: invalid literal for int()"),
    ({"num_labels": "two"}, "describes no model"),
    ({"rope_scaling": {"rope_type": "linear"}}, "Missing required keys in `rope_parameters`"),
    ({"dtype": "float7"}, "no attribute 'float7'"),
]


@pytest.mark.parametrize(
    ("command", "data", "says"),
    [
        (command, *given)
        for index, given in enumerate(CONFIGS)
        for command in (COMMANDS if index < 3 else ("plan",))  # all have the same reader
    ],
    ids=lambda value: str(value)[:30],
)
def test_config_json(
    cli: Cli,
    command: str,
    data: bytes | dict[str, Any],
    says: str,
    arguments: list[str],
    run: Path,
    tmp_path: Path,
    checkpoint_folder: Path,
) -> None:
    model = shutil.copytree(checkpoint_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_bytes(
        data if isinstance(data, bytes) else json.dumps(config | data).encode()
    )
    one_error(on_model(cli, command, model, arguments, run), "model.path: ", str(model), says)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("data", [b"", b"\x00garbage" * 100, b"GGUF\x03\x00\x00\x00"])
def test_gguf(
    cli: Cli, command: str, data: bytes, arguments: list[str], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    one_error(
        on_model(cli, command, tmp_path / "model.gguf", arguments, run),
        f"model.path: {tmp_path}/model.gguf is not a GGUF, or not a whole one",
        "download it again",
    )


@pytest.mark.parametrize("name", ["package:", "package:no.such/file", "package:os/file"])
def test_packages_that_ship_no_model(cli: Cli, name: str) -> None:
    outcome = cli("plan", f"model.path={name}", "calibration=pydoc")
    one_error(outcome, "model.path: the Python package")


LAYER = {"kv_heads": 3, "mlp_channels": 48}
AUTHORS = {
    "pruned_attn_idx": [0],
    "pruned_mlp_idx": [],
    "pruned_attn_width": {"1": 48},
    "pruned_mlp_width": {"1": 48},
}


@pytest.mark.parametrize(
    "data",
    [
        {"layers": [LAYER | {"kv_heads": -1}, LAYER, LAYER, LAYER]},
        {"layers": [LAYER | {"mlp_channels": -16}, LAYER, LAYER, LAYER]},
        {"layers": [LAYER | {"mlp_channels": 4800}, LAYER, LAYER, LAYER]},
        {"layers": [LAYER | {"mlp_channels": 1.5}, LAYER, LAYER, LAYER]},
        {"layers": [LAYER | {"mlp_channels": "x"}, LAYER, LAYER, LAYER]},
        {"layers": [LAYER]},
        {"layers": [{}]},
        {"layers": None},
        [1],
        None,
        AUTHORS | {"pruned_attn_idx": [-1]},
        AUTHORS | {"pruned_attn_idx": "x"},
        AUTHORS | {"pruned_attn_idx": None},
        AUTHORS | {"pruned_attn_width": {"0": -16}},
        AUTHORS | {"pruned_mlp_width": {"0": -16}},
        AUTHORS | {"pruned_mlp_width": {"x": 16}},
        AUTHORS | {"pruned_mlp_width": [1]},
        AUTHORS | {"pruned_attn_idx": [1.5]},
        AUTHORS | {"pruned_mlp_width": {"0": 16.5}},
        AUTHORS | {"pruned_mlp_width": {"0": float("inf")}},
        {"pruned_attn_idx": [0]},
    ],
    ids=lambda value: str(value)[-45:],
)
def test_shape_files(cli: Cli, data: Any, tmp_path: Path, checkpoint_folder: Path) -> None:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(data) if data is not None else "")
    outcome = cli("export", f"model.path={checkpoint_folder}", f"shape={path}", "importance=none")
    one_error(outcome, "shape: ", str(path))


def test_a_shape_file_of_many_brackets(cli: Cli, tmp_path: Path, checkpoint_folder: Path) -> None:
    path = tmp_path / "shape.json"
    path.write_text("[" * 100_000)
    outcome = cli("export", f"model.path={checkpoint_folder}", f"shape={path}", "importance=none")
    one_error(outcome, "shape: cannot read", str(path))


@pytest.mark.parametrize(
    ("command", "shape"),
    [
        (command, shape)
        for command in ("evaluate", "export", "report", "reproduce", "prune")
        for shape in (5, None, [1], "wide", "3x48*2", "9x48*4")
        if command in ("evaluate", "export") or shape not in ("3x48*2", "9x48*4")
    ],
    ids=str,
)
def test_shapes_of_a_trajectory(
    cli: Cli, command: str, shape: Any, ended: Outcome, arguments: list[str]
) -> None:
    """The last one is what evaluations and exports are of. Report and reproduce read no model that
    it would have to fit, and a search takes the steps anew.
    """
    path = ended.folder / "trajectory.jsonl"
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"shape": shape})
    path.write_text("\n".join(lines) + "\n")
    words = {
        "evaluate": [f"run={ended.folder}", "evaluation.cost=true"],
        "export": [f"run={ended.folder}"],
        "report": [str(ended.folder), "log_to_mlflow=false"],
        "reproduce": [f"record={ended.folder}", "record_as=mine"],
        "prune": [*arguments, f"output_dir={ended.folder}"],
    }[command]
    outcome = cli(command, *words, **({"folder": None} if command == "reproduce" else {}))
    one_error(outcome, str(path))


def test_fewer_heldout_sequences_than_asked_for_are_said(
    cli: Cli, checkpoint_folder: Path, token_file: Path, store_and_tracking: list[str]
) -> None:
    """The file has 24 sequences; 8 of them calibrate."""

    def output(asked: int) -> str:
        words = tiny_search(
            checkpoint_folder, token_file, f"calibration.num_heldout_samples={asked}"
        )
        outcome = cli("prune", *words, *store_and_tracking, folder=f"run_{asked}")
        assert outcome.status == 0, outcome.output
        return " ".join(outcome.output.split())

    said = "calibration.num_heldout_samples: 17 asked for, 16 left"
    assert f"{said}: the held-out perplexity is over 16 sequences" in output(17)
    assert "num_heldout_samples:" not in output(16)
