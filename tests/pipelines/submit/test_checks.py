"""What a command would refuse within a second is refused where it is submitted; what only the
cluster knows is not looked at.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.submit.plan import show_plan
from pipelines.submit.request import Request
from pruning.errors import InputError
from tests.conftest import tiny_config, tiny_model

MODEL = "model.path=/shared/models/big"
PRUNE = ("prune", MODEL, "output_dir=/runs/a", "store=postgresql")
SWEEP = ("sweep", *PRUNE[1:])
SOLVE = ("solve", "run=/runs/a", "output_dir=/runs/b")


@pytest.fixture(autouse=True)
def _laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cluster's variables are not set."""
    for name in ("MULTIPRUNER_STORE_URL", "MLFLOW_TRACKING_URI", "SCRATCH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        ((*PRUNE, "search.target_ratio=1.5"), ["search.target_ratio: 1.5"]),
        (
            (*PRUNE, "calibration.batch_size=0", "cluster.num_cpus_per_evaluator=0"),
            ["calibration.batch_size: 0", "cluster.num_cpus_per_evaluator: 0"],
        ),
        ((*PRUNE, "search=blockpruner", "search.mlp_group_channels=64"), ["search.mlp_group_ch"]),
        ((*PRUNE, "calibration=text"), ["calibration.path: "]),
        (
            (*PRUNE, "calibration=text", "calibration.path=${oc.env:SCRATCH}/a", "search.seed=-1"),
            ["search.seed: -1"],
        ),
        (("export", "run=${oc.env:SCRATCH}/a", "format=onnx"), ["format: 'onnx'"]),
        (
            ("latency", "model.path=${oc.env:SCRATCH}/a", "output_dir=/runs/a", "rounds=0"),
            ["rounds: 0"],
        ),
        (
            ("solve", "run=${oc.env:SCRATCH}/a", *SOLVE[2:], "search.target_ratio=[0.1,2]"),
            ["search.target_ratio: 2"],
        ),
        ((*SWEEP, "search.target_ratio=[0.1,1.5]"), ["search.target_ratio: 1.5"]),
        (
            (*SWEEP, "search.target_ratio=[0.1,0.2]", "max_perplexity_ratio=0.5"),
            ["max_perplexity_ratio: 0.5"],
        ),
        (
            (*SWEEP, "search.target_ratio=[0.1,0.2]", "search=blockpruner", "search.head_group=1"),
            ["search.head_group: no such option"],
        ),
        (
            (
                *(*SWEEP, "search.target_ratio=[0.1,0.2]", "search=blockpruner"),
                "search.mlp_group_channels=64",
            ),
            ["search.mlp_group_channels: "],
        ),
        ((*SWEEP,), ["grid: empty"]),
        (SOLVE, ["search.target_ratio: missing"]),
        ((*SOLVE, "search.target_ratio=[0.1,2]"), ["search.target_ratio: 2"]),
        (("latency", MODEL, "output_dir=/runs/a", "rounds=0"), ["rounds: 0"]),
        (("recover", "run=/runs/a", "recovery.rank=0"), ["recovery.rank: 0"]),
        (("recover", "shape=/a/shape.json", MODEL, "output_dir=/b"), ["calibration: missing"]),
        (
            ("evaluate", "run=/runs/a", "store=postgresql", "evaluation.batch_size=0"),
            ["evaluation.batch_size: 0"],
        ),
        (("export", "run=/runs/a", "format=tar"), ["format: 'tar'; one of"]),
        (("recover", "run=/runs/a", "plan=true"), ["plan: true; a plan is no job"]),
    ],
    ids=lambda value: " ".join(value)[-60:],
)
def test_as_the_command_refuses_it(words: tuple[str, ...], problems: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        Request.of(words)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(problems), lines
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem), line


def test_with_what_the_request_says_itself() -> None:
    with pytest.raises(InputError) as refused:
        Request.of(("prune", MODEL, "search.target_ratio=1.5"))
    found = [line.partition(":")[0] for line in str(refused.value).splitlines()]
    assert found == ["output_dir", "store.url", "search.target_ratio"]


@pytest.mark.parametrize(
    "words",
    [
        (*PRUNE, "tracking=server"),
        (*PRUNE, "calibration=text", "calibration.path=/shared/text.txt"),
        (*PRUNE, "search=allocation", "search.target.latency=0.8", "latency=/shared/latency.json"),
        (*PRUNE, "calibration=text", "calibration.path=${oc.env:SCRATCH}/text.txt"),
        (*PRUNE, "calibration.batch_size=${oc.env:SCRATCH}"),
        (*PRUNE, "model.dtype=${oc.env:SCRATCH}"),
        (*PRUNE, "tracking.uri=${oc.env:SCRATCH}"),
        (*PRUNE[:3], "store.url=${oc.env:SCRATCH}"),
        (*PRUNE, "search.target.memory=${oc.env:SCRATCH}"),
        ("export", "run=/runs/a", "format=${oc.env:SCRATCH}"),
        (
            *PRUNE,
            "calibration=mix",
            "calibration.sources=[{source:text,path:'${oc.env:SCRATCH}/a'}]",
        ),
        (*SWEEP, "tracking=server", "search.target_ratio=[0.1,0.2]"),
        ("prune", "output_dir=/runs/a", "resume=true", "search.target_ratio=1.5"),
        (*SOLVE, "search.target_ratio=[0.1,0.2]"),
        ("latency", MODEL, "output_dir=/runs/a", "cluster.num_cpus_per_evaluator=512"),
        ("recover", "run=/runs/a", "tracking=server"),
        ("evaluate", "run=/runs/a", "store=postgresql", "tracking=server"),
        ("export", "run=/runs/a", "format=gguf", "tokenizer_gguf=/shared/tokenizer.gguf"),
    ],
    ids=lambda words: " ".join(words)[-60:],
)
def test_what_only_the_cluster_has(words: tuple[str, ...]) -> None:
    """Variables, files, runs and cores of it; and the settings of a run that goes on."""
    assert Request.of(words).command == words[0]


def test_a_variable_of_the_cluster_leaves_the_plan_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tiny_config("llama")).save_pretrained(tmp_path)
    words = ("calibration=text", "calibration.path=${oc.env:SCRATCH}/text.txt")
    show_plan(Request.of(("prune", f"model.path={tmp_path}", *PRUNE[2:], *words)))
    assert "no plan, since an option is known on the cluster alone: " in capsys.readouterr().out


def test_every_submitted_command_is_checked() -> None:
    from pipelines.submit.checks import _CHECKS
    from pipelines.submit.request import SUBMITTED

    assert set(_CHECKS) == set(SUBMITTED)
