"""Recoveries of a shape file, such as one of `solve`: as those of a search, and complete without
it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import multipruner
from pipelines.evaluate import benchmarks
from pruning.calibration.token_sets import TokenSet
from pruning.shape import ModelShape
from tests.conftest import tokens
from tests.pipelines.command import Outcome, without_times
from tests.pipelines.conftest import Cli, Search
from tests.pipelines.recover.conftest import QUICK, Recover
from tests.pipelines.tracking.test_description import NOTE, command_in, page

WORDS = ("model.dtype=float32", "calibration=tokens", *QUICK)


@pytest.fixture
def text(token_file: Path) -> str:
    return f"calibration.path={token_file}"


@pytest.fixture
def places(tmp_path: Path) -> str:
    return f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def solved(cli: Cli, search: Search) -> Outcome:
    """A shape whose narrowed blocks are compensated."""
    words = ("search.target_ratio=0.12", "search.distribution=[0,1,1]")
    allocated = search("search=allocation", *words, "search.mlp_group_channels=8", folder="run")
    assert allocated.status == 0, allocated.output
    found = cli("solve", f"run={allocated.folder}", "search.target_ratio=0.2", folder="solved")
    assert found.status == 0, found.output
    assert (found.folder / "statistics.safetensors").exists()
    shutil.rmtree(allocated.folder)
    return found


def test_the_shape_of_a_search_is_recovered_as_the_search_is(
    recover: Recover, ended: Outcome, cli: Cli, checkpoint_folder: Path, text: str, places: str
) -> None:
    """Bit by bit, and exported the same."""
    of_search = recover()
    given = (f"shape={ended.folder}/shape.json", f"model.path={checkpoint_folder}", text, places)
    of_shape = cli("recover", *given, *WORDS, folder="of-shape")
    assert of_shape.status == 0, of_shape.output
    runs = (of_search, of_shape)
    curves = [without_times(run.folder / "recovery.jsonl") for run in runs]
    assert curves[0] == curves[1]
    adapters = [(run.folder / "adapters.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
    assert of_shape.read("recovery.json")["run"] is None
    weights = []
    for run in runs:
        exported = cli("export", f"run={run.folder}", folder=f"{run.folder.name}-exported")
        assert exported.status == 0, exported.output
        manifest = exported.read("multipruner.json")
        assert manifest["status"] == "verified"
        assert manifest["recovery"]["settings"]["steps"] == 12
        weights.append((exported.folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert "trajectory" not in manifest, "no search is known"


@pytest.mark.parametrize("of", ["run", "shape"])
def test_the_command_on_its_page_makes_the_same(
    of: str, ended: Outcome, cli: Cli, checkpoint_folder: Path, text: str
) -> None:
    """Of a search on more of its text, whose sizes a recovery does not take."""
    shape = (f"shape={ended.folder}/shape.json", f"model.path={checkpoint_folder}", text)
    given = (*shape, *WORDS) if of == "shape" else (f"run={ended.folder}", *QUICK)
    uri = f"tracking.uri=sqlite:///{ended.folder.parent}/mlflow.db"
    first = cli("recover", *given, uri, folder="first")
    assert first.status == 0, first.output
    program, name, *again = command_in(page(first).data.tags[NOTE])
    assert (program, name) == ("multipruner", "recover")
    named = [word for word in again if word.startswith("output_dir=")]
    assert named == ([] if of == "run" else [f"output_dir={first.folder}"])
    repeated = cli("recover", *(word for word in again if word not in named), uri, folder="again")
    assert repeated.status == 0, repeated.output
    curves = [without_times(run.folder / "recovery.jsonl") for run in (first, repeated)]
    assert curves[0] == curves[1]


def test_a_solved_shape_is_recovered_and_needs_the_model_only(
    cli: Cli,
    solved: Outcome,
    checkpoint_folder: Path,
    text: str,
    places: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compensated, by a model whose path is relative, and with the folder of `solve` gone."""
    shutil.copytree(checkpoint_folder, tmp_path / "model")
    given = (f"shape={solved.folder}/shape.json", "model.path=model", text, places)
    outcome = cli("recover", *given, *WORDS, folder="recovered")
    assert outcome.status == 0, outcome.output
    shape = ModelShape.from_json(solved.read("shape.json"))
    shutil.rmtree(solved.folder)
    monkeypatch.chdir("/")
    windows = TokenSet(tokens(6, 24).numpy())
    monkeypatch.setattr(benchmarks, "_windows", lambda *_: ("story", windows))
    words = ("evaluation.tasks=[]", "evaluation.texts=[story]", "evaluation.cost=false")
    store = f"store.url=sqlite:///{tmp_path}/scores.db"
    measured = cli(
        "evaluate", f"run={outcome.folder}", *words, "cluster=inline", store, folder=None
    )
    assert measured.status == 0, measured.output
    found = outcome.evaluation
    pages = [found["dense"], found["pruned"], found]
    assert len({each["perplexity"]["story"] for each in pages}) == 3
    exported = cli("export", f"run={outcome.folder}", folder="exported")
    assert exported.status == 0, exported.output
    assert exported.read("multipruner.json")["status"] == "verified"
    run = multipruner.open(outcome.folder)
    assert isinstance(run, multipruner.Run)
    assert (run.folder, run.shape) == (outcome.folder, shape)
    assert run.model.config.vocab_size == 128
    with pytest.raises(multipruner.InputError, match="recovery of a shape file, which no search"):
        _ = run.trajectory
