"""docs/examples/*.py do what the commands do, and load no more than they need."""

from __future__ import annotations

import json
import random
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from pruning.models.families import FAMILIES
from pruning.scoring.score import perplexity
from pruning.shape import ModelShape, Removal
from tests.conftest import ROOT, tiny_config, tiny_model
from tests.docs.pages import Page
from tests.documents import save_reader, sentence
from tests.pipelines.command import Outcome, run_command
from tests.tiny_search import places

EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))
SETTINGS = (
    "model.path=reader",
    "model.dtype=float32",
    "calibration=text",
    "calibration.path=text.txt",
    "calibration.num_block_samples=6",
    "calibration.num_width_samples=4",
    "calibration.num_heldout_samples=0",
    "calibration.sequence_length=128",
    "calibration.batch_size=2",
    "search.target_ratio=0.31",
)
"""Those of the example prune.py; with this target all three stages take steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tiny model `reader` and text.txt."""
    folder = tmp_path_factory.mktemp("examples")
    save_reader(folder / "reader")
    generator = random.Random(1)
    text = "\n\n".join(sentence(generator, 60) for _ in range(60))
    (folder / "text.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def searched(folder: Path) -> Outcome:
    """The command's own result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = f"output_dir={folder}/run"
        outcome = run_command("prune", *SETTINGS, *places(folder), run)
    assert outcome.status == 0, outcome.output
    return outcome


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What an example registers is gone after the test."""
    with mock.patch.dict(FAMILIES):
        yield


Run = Callable[..., list[str]]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("prune.py", WORD, ...)` runs an example in `folder`; the lines that it prints."""
    monkeypatch.chdir(folder)

    def run(name: str, *words: object) -> list[str]:
        path = ROOT / "docs/examples" / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def change(line: str) -> float:
    return float(line.partition("change by ")[2].split()[0])


def test_the_shape_of_a_search_scores_as_its_evaluation_says(
    folder: Path,
    searched: Outcome,
    run: Run,
) -> None:
    shape = searched.read("shape.json")["text"]
    measured = run_command(
        "evaluate",
        f"run={searched.folder}",
        "evaluation=perplexity",
        "evaluation.texts=[text.txt]",
        "evaluation.sequence_length=100",
        *places(folder),
    )
    assert measured.status == 0, measured.output
    report = json.loads((searched.folder / "evaluation.json").read_text())
    order = f"--order={searched.folder}/channel_order.safetensors"
    words = ("reader", "text.txt", f"--shape={shape}", order, "--length=100")
    lines = run("score_shape.py", *words)
    found = [float(line.rpartition("perplexity ")[2]) for line in lines]
    expected = [report["dense"]["perplexity"]["text"], report["perplexity"]["text"]]
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found[0] - found[1]) > 1, "the shape changes nothing"
    assert [line.split(":")[0] for line in lines] == ["3x48*4", shape]


def test_a_shape_is_scored_without_a_search_too(run: Run) -> None:
    lines = run("score_shape.py", "reader", "text.txt")
    assert [line.split(":")[0] for line in lines] == ["3x48*4", "3x48 3x0 3x48*2"]


def test_the_search_takes_the_steps_of_the_command_and_writes_the_same_model(
    folder: Path,
    searched: Outcome,
    tmp_path: Path,
    run: Run,
) -> None:
    words = ("reader", "text.txt", tmp_path / "pruned", "--ratio=0.31")
    *lines, last = run("prune.py", *words)
    steps = [json.loads(line) for line in (searched.folder / "trajectory.jsonl").open()]
    assert {step["stage"] for step in steps} == {"block", "mlp_channels", "attention_heads"}
    assert lines == [
        f"{step['ratio']:.4f} {Removal.from_json(step['removed'])}: "
        f"perplexity {perplexity(step['nll'])}"
        for step in steps
    ]
    assert last == f"{tmp_path / 'pruned'} verified"
    exported = run_command("export", f"run={searched.folder}", f"output_dir={tmp_path / 'same'}")
    assert exported.status == 0, exported.output
    [name] = exported.read("multipruner.json")["weight_files"]
    written = [tmp_path / each / name for each in ("pruned", "same")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_python_searches_measures_and_writes_as_the_commands_do(
    folder: Path, searched: Outcome, run: Run
) -> None:
    """Store and MLflow are where they are by default, in the folder that it runs in."""
    said = run("from_python.py", "reader", "text.txt", "--ratio=0.31", "--cluster=inline")
    steps = [json.loads(line) for line in (searched.folder / "trajectory.jsonl").open()]
    first = next(index for index, line in enumerate(said) if line.split()[:1] == ["layer"])
    rows = said[first + 2 : first + 2 + len(steps)]
    assert [row.split()[1] for row in rows] == [str(step["removed"]["layer"]) for step in steps]
    [shapes] = [line for line in said if line.startswith("half way:")]
    half = next(step["shape"] for step in steps if step["ratio"] >= 0.155)
    assert shapes == f"half way: {half} at the end: {searched.read('shape.json')['text']}"
    assert sum(line.startswith("next token: ") for line in said) == 1
    [report] = [line for line in said if line.startswith("perplexity: {'text'")]
    pruned, dense = map(float, re.findall(r"'text': ([\d.]+)", report))
    assert abs(pruned - dense) > 1
    written = Path(said[-1].removeprefix("written: "))
    assert json.loads((written / "multipruner.json").read_text())["status"] == "verified"
    assert written.is_relative_to(folder / "outputs")


def test_the_search_needs_neither_hydra_nor_mlflow_nor_ray() -> None:
    code = (
        "import runpy, sys; runpy.run_path('docs/examples/prune.py'); "
        "print(sorted({'hydra', 'omegaconf', 'mlflow', 'ray', 'pipelines'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_family_of_ones_own_is_pruned_in_width_as_it_says(tmp_path: Path, run: Run) -> None:
    tiny_model(tiny_config("starcoder2")).save_pretrained(tmp_path / "model")
    shape = ModelShape.parse("1x24*4")
    (tmp_path / "shape.json").write_text(json.dumps(shape.to_json()))
    words = (
        f"shape={tmp_path}/shape.json",
        f"model.path={tmp_path}/model",
        "importance=l1",
        f"output_dir={tmp_path}/pruned",
    )
    refused = run_command("export", *words)
    assert refused.status == 2
    assert "'starcoder2' is pruned by whole blocks only" in refused.output
    lines = run("own_family.py", tmp_path / "model")
    assert change(lines[0]) < 1e-5
    assert change(lines[1]) > 1e-2
    assert lines[1].startswith(f"{shape.text}:")
    exported = run_command("export", *words)
    assert exported.status == 0, exported.output
    manifest = exported.read("multipruner.json")
    parameters = manifest["num_parameters"]["pruned"]
    assert lines[2] == f"{parameters} parameters, ratio {manifest['ratio']}"


def test_a_family_that_is_described_wrongly_is_seen(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs/examples/own_family.py").read_text()
    wrong = text.replace(', Cut("c_proj", 1, ("down",))', ",")
    assert wrong != text
    (tmp_path / "wrong.py").write_text(wrong)
    with pytest.raises(RuntimeError, match="shape"):  # one of the two projections is narrower
        run(tmp_path / "wrong.py")
    assert change(capsys.readouterr().out.splitlines()[0]) > 1e-3


def test_every_example_is_on_the_page_as_it_is() -> None:
    text = Page(ROOT / "docs/reference/python_api.md").text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(EXAMPLES) == 4
    assert sorted(blocks) == sorted(path.read_text() for path in EXAMPLES)
