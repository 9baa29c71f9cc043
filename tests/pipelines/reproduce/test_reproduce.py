"""A run's own figures come out again, in all three modes, and one that was changed is called so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.documents import save_reader, save_tasks
from tests.pipelines.command import run_command
from tests.pipelines.reproduce.conftest import Reproduce, outside
from tests.tiny_search import places, tiny_search


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tasks(tmp_path_factory.mktemp("tasks"))


_first_runs: dict[str, Path] = {}


@pytest.fixture(params=["llama", "qwen2"])
def first(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> Path:
    """A search of a tiny model of that family and its evaluation, made once."""
    family = request.param
    if family not in _first_runs:
        _first_runs[family] = first_run(
            tmp_path_factory.mktemp(f"first-{family}"), family, data_dir
        )
    return _first_runs[family]


def first_run(folder: Path, family: str, data_dir: Path) -> Path:
    model = save_reader(folder / f"tiny-{family}", family)
    (folder / "story.txt").write_text(
        "the old cat sees a small red bird under the big tree with water and fish " * 60
    )
    outcome = run_command(
        "prune",
        *tiny_search(
            model,
            folder / "story.txt",
            "calibration=text",
            "calibration.sequence_length=64",
            "calibration.num_block_samples=4",
            "calibration.num_width_samples=4",
            "calibration.num_heldout_samples=2",
            "search.importance=l1",
        ),
        *places(folder),
        "evaluation=zero_shot",
        "evaluation.cost=false",
        "evaluation.tasks=[piqa,arc_easy]",
        f"evaluation.data_dir={data_dir}",
        f"evaluation.texts=[{folder}/story.txt]",
        "evaluation.sequence_length=64",
        f"output_dir={folder}/run",
    )
    assert outcome.status == 0, outcome.output
    return folder


@pytest.fixture
def recorded(run: Reproduce, first: Path, own_conf: Path) -> Path:
    """The experiment's file."""
    outcome = run(f"record={first}/run", "record_as=mine/tiny", folder=None)
    assert outcome.status == 0, outcome.output
    assert "experiment=mine/tiny mode=search" in outcome.output
    return own_conf / "experiment" / "mine" / "tiny.yaml"


def recorded_in(folder: Path) -> tuple[str, ...]:
    """The experiment, with the store and the MLflow of this folder."""
    return ("experiment=mine/tiny", *places(folder))


def test_a_run_reproduces_itself(
    run: Reproduce, recorded: Path, first: Path, tmp_path: Path
) -> None:
    """In all three modes, with a store of its own; the same command again computes nothing."""
    where = recorded_in(tmp_path)
    for mode in ("counts", "shape", "search"):
        outcome = run(*where, f"mode={mode}", folder=mode)
        assert outcome.status == 0, outcome.output
        assert {
            check["verdict"]
            for check in outcome.read("verdict.json")["checks"]
            if "average" not in check["quantity"]
        } == {"within"}
        quantities = {check["quantity"] for check in outcome.read("verdict.json")["checks"]}
        assert {"parameters, dense", "parameters, pruned", "ratio"} <= quantities
        if mode != "counts":
            assert {
                "pruned: perplexity, story",
                "pruned: accuracy, piqa",
                "dense: accuracy, arc_easy",
            } <= quantities
            differences = [
                check["difference"]
                for check in outcome.read("verdict.json")["checks"]
                if "perplexity" in check["quantity"]
            ]
            assert differences == pytest.approx([0, 0], abs=1e-6)
        if mode == "search":
            assert outcome.read("verdict.json")["divergence"] is None
            assert outcome.read("verdict.json")["layers"] == []
            assert {"order of all removals", "layers whose shape differs"} <= quantities
            again = run(*where, "mode=search", folder=mode)
            assert again.status == 0, again.output
            assert (
                json.loads((again.folder / "evaluation.json").read_text())["answers"]["computed"]
                == 0
            )
            assert (
                json.loads((again.folder / "summary.json").read_text())["evaluations"]["scored"]
                == 0
            )
    assert (tmp_path / "search" / "trajectory.jsonl").is_file()
    assert "expected: null" in (tmp_path / "search" / "config.yaml").read_text(), (
        "a run like any other"
    )
    identities = [
        json.loads((folder / "run.json").read_text())["identity"]
        for folder in (first / "run", tmp_path / "search")
    ]
    assert identities[0] == identities[1], "what a result is compared with decides nothing"


@pytest.mark.parametrize("first", ["llama"], indirect=True)
def test_a_shape_file(run: Reproduce, recorded: Path, first: Path, tmp_path: Path) -> None:
    """The authors' own format, with figures that another shape has."""
    shutil.copy(first / "run" / "pruning_config.json", tmp_path / "pruning_config.json")
    outcome = run(*recorded_in(first), "mode=shape", f"shape={tmp_path}/pruning_config.json")
    assert outcome.status == 0, outcome.output
    layers = json.loads((first / "run" / "shape.json").read_text())
    layers["layers"][0] = {"kv_heads": 3, "mlp_channels": 16}
    (tmp_path / "other.json").write_text(json.dumps(layers))
    other = run(*recorded_in(first), "mode=shape", f"shape={tmp_path}/other.json", folder="other")
    assert other.status == 1
    assert "parameters, pruned" in outside(other)
    refused = run(*recorded_in(first), "mode=shape", f"shape={tmp_path}/other.json")
    assert refused.status == 2, "the folder is of the first shape"
    assert "belongs to another run" in refused.output


@pytest.mark.parametrize(
    ("first", "mode"),
    [("llama", "shape"), ("llama", "search"), ("qwen2", "shape"), ("qwen2", "search")],
    indirect=["first"],
)
def test_a_perturbed_figure(run: Reproduce, recorded: Path, first: Path, mode: str) -> None:
    expected = yaml.safe_load(recorded.read_text())["expected"]
    perplexity = expected["pruned"]["perplexity"]["story"]
    outcome = run(
        *recorded_in(first),
        f"mode={mode}",
        f"expected.pruned.perplexity.story={perplexity * 1.02}",
        "expected.pruned.accuracy.piqa=1.5",
    )
    assert outcome.status == 1, outcome.output
    assert outside(outcome) == ["pruned: perplexity, story", "pruned: accuracy, piqa"]


@pytest.mark.parametrize("first", ["llama"], indirect=True)
def test_a_wider_tolerance(run: Reproduce, recorded: Path, first: Path) -> None:
    perplexity = yaml.safe_load(recorded.read_text())["expected"]["pruned"]["perplexity"]["story"]
    given = (
        f"expected.pruned.perplexity.story={perplexity * 1.02}",
        "expected.tolerance.perplexity=0.05",
    )
    assert run(*recorded_in(first), "mode=shape", *given).status == 0


@pytest.mark.parametrize("first", ["llama"], indirect=True)
def test_where_a_search_goes_another_way(
    run: Reproduce, recorded: Path, first: Path, tmp_path: Path
) -> None:
    """The step is named, with what was expected there and how much worse it scored."""
    steps: list[str] = yaml.safe_load(recorded.read_text())["expected"]["steps"]
    line = json.loads((first / "run" / "trajectory.jsonl").read_text().splitlines()[1])
    taken = steps[1]
    other = next(
        candidate
        for candidate in line["candidates"]
        if f"{candidate['kind']}:{candidate['layer']}" != taken
    )
    wrong = [steps[0], f"{other['kind']}:{other['layer']}", *steps[2:]]
    outcome = run(*recorded_in(first), "mode=search", f"expected.steps=[{','.join(wrong)}]")
    assert outcome.status == 1
    assert outside(outcome) == ["order of all removals"]
    divergence = outcome.read("verdict.json")["divergence"]
    assert (divergence["step"], divergence["expected"], divergence["taken"]) == (2, wrong[1], taken)
    assert divergence["nll_difference"] == pytest.approx(other["nll"] - line["nll"])
    assert (
        f"first divergence: step 2 removed {taken}; expected was {wrong[1]}, which scored +"
        in outcome.output
    )


@pytest.mark.parametrize("first", ["llama"], indirect=True)
def test_where_only_the_order_of_blocks_is_known(
    run: Reproduce, recorded: Path, first: Path
) -> None:
    """As of the published runs."""
    steps: list[str] = yaml.safe_load(recorded.read_text())["expected"]["steps"]
    attention, mlp = (
        [int(step.split(":")[1]) for step in steps if step.startswith(f"{kind}:")]
        for kind in ("attention", "mlp")
    )
    lists = ["expected.steps=null", f"expected.removed_mlp={mlp}".replace(" ", "")]
    right = run(
        *recorded_in(first),
        "mode=search",
        *lists,
        f"expected.removed_attention={attention}".replace(" ", ""),
    )
    assert right.status == 0, right.output
    more = run(
        *recorded_in(first),
        "mode=search",
        *lists,
        f"expected.removed_attention={[*attention, 9]}".replace(" ", ""),
    )
    assert outside(more) == ["attention blocks in the order that they went"]
    assert "first divergence: the search ended before attention:9 was removed" in more.output
    dense = 3 * 48
    shape = run(*recorded_in(first), "mode=search", f"expected.shape=3x48*{dense // 36}")
    assert "layers whose shape differs" in outside(shape)
    assert "layers differ (KV heads x MLP channels): layer" in shape.output


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ((), ["expected: missing; give experiment=NAME with figures"]),
        (
            ("experiment=multipruner/llama2_7b_22", "mode=count"),
            ["mode: 'count'; one of counts, shape, search"],
        ),
        (
            ("experiment=multipruner/llama2_7b_22", "shape=a.json"),
            ["shape: a.json, which has no effect with mode=counts"],
        ),
        (("experiment=multipruner/llama2_7b_22", "resume=true"), ["output_dir goes on"]),
        (
            ("experiment=multipruner/llama2_7b_22", "expected.tolerance.perplexity=-1"),
            ["expected.tolerance.perplexity: -1.0; at least 0"],
        ),
        (
            ("experiment=multipruner/llama2_7b_22", "expected.shape=4x4"),
            ["expected.shape: it does not fit this model: it has 1 layers, the model 32"],
        ),
        (
            ("experiment=multipruner/llama2_7b_22", "mode=shape", "evaluation=none"),
            ["evaluation: nothing to compare"],
        ),
        (("experiment=multipruner/llama2_7b_22", "mode=shape"), ["hub cannot be reached"]),
        (("experiment=multipruner/llama2_7b_22", "mode=search"), ["hub cannot be reached"]),
        (("record=nowhere",), ["record_as: missing"]),
        (("record=nowhere", "record_as=mine"), ["record: ", "has no run.json"]),
        (("record=nowhere", "record_as=demo"), ["is there already"]),
        (("record=nowhere", "record_as=../mine"), ["record_as: '../mine'; give a name"]),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)
def test_bad_input(run: Reproduce, overrides: tuple[str, ...], messages: list[str]) -> None:
    folder = None if any(word.startswith("record=") for word in overrides) else "reproduce"
    outcome = run(*overrides, folder=folder)
    assert outcome.status == 2, outcome.output
    for message in messages:
        assert message in outcome.output.replace("\n", " ")
