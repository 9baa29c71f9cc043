"""pipelines.evaluate: the harness's own numbers, spread over evaluators, never computed twice,
never shared between shapes.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.numpy import save_file

from pipelines.evaluate.harness import task_results
from pipelines.evaluate.local_tasks import stock_tasks
from pipelines.runs.saved_run import read_run
from pipelines.store.scores import AnswerContext, ScoreStore
from pruning.importance.channel_order import reorder
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.shape import ModelShape
from tests.conftest import tokens
from tests.documents import NUM_REQUESTS, TASKS, save_reader, save_tasks, sentence
from tests.pipelines.command import Outcome, run_command
from tests.pipelines.conftest import Cli
from tests.tiny_search import places, tiny_search
from workers.cluster.machine import LocalMachine
from workers.evaluators.benchmarks import BenchmarkEvaluator
from workers.tasks import BenchmarkSpec, WindowTask

QUICK = ("evaluation.cost=false",)
TWO = ("cluster=local", "cluster.num_evaluators=2", "cluster.num_gpus_per_evaluator=0")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reader(tmp_path_factory.mktemp("reader") / "tiny-reader")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tasks(tmp_path_factory.mktemp("tasks"))


Evaluate = Callable[..., Outcome]


@pytest.fixture
def run(data_dir: Path, cli: Cli, store_and_tracking: list[str]) -> Evaluate:
    """`run("model.path=...", folder="a")` evaluates, with what is not given from `mine`."""
    mine = [f"evaluation.data_dir={data_dir}", "model.dtype=float32", *store_and_tracking]

    def call(*overrides: str, folder: str = "evaluation") -> Outcome:
        given = list(overrides)
        if not any(word.startswith(("evaluation.tasks=", "evaluation=")) for word in overrides):
            given.append(f"evaluation.tasks=[{','.join(TASKS)}]")
        names = {word.split("=")[0] for word in overrides}
        names |= {"store.url", "tracking.uri"} if "run" in names else set()  # those of the search
        given += [word for word in mine if word.split("=")[0] not in names]
        return cli("evaluate", *given, folder=folder)

    return call


def harness_alone(
    reader: Path, data_dir: Path, limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """One process, no program of ours but for the file that says where the documents are."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from pipelines.evaluate.local_tasks import task_manager

    with task_manager(TASKS, str(data_dir)) as manager:
        model = HFLM(
            pretrained=Checkpoint(reader).load(dtype="float32"),
            tokenizer=Checkpoint(reader).tokenizer(),
            batch_size=1,
        )
        found = lm_eval.simple_evaluate(
            model=model, tasks=list(TASKS), task_manager=manager, limit=limit, bootstrap_iters=1000
        )
    assert found is not None
    return {
        name: task_results(values, found["n-samples"][name])
        for name, values in found["results"].items()
    }


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors by resampling, from a hundredth of the harness's default."""
    import lm_eval

    from pipelines.evaluate import harness

    real = lm_eval.simple_evaluate
    monkeypatch.setattr(
        harness.lm_eval,
        "simple_evaluate",
        lambda **options: real(**({"bootstrap_iters": 1000} | options)),
    )


@pytest.mark.ray
@pytest.mark.usefixtures("few_resamples")
def test_equals_the_harness_alone(
    run: Evaluate, reader: Path, data_dir: Path, local_cluster: LocalMachine, tmp_path: Path
) -> None:
    """In every metric and standard error of every kind of task, to the last digit, with one
    evaluator and with two.
    """
    alone = harness_alone(reader, data_dir)
    assert {len(values) for values in alone.values()} > {3}
    assert any(
        value for values in alone.values() for name, value in values.items() if "stderr" in name
    ), "there are standard errors"
    one = run(
        f"model.path={reader}", *QUICK, f"store.url=sqlite:///{tmp_path}/one.db", folder="one"
    )
    two = run(
        f"model.path={reader}", *QUICK, *TWO, f"store.url=sqlite:///{tmp_path}/two.db", folder="two"
    )
    assert (one.status, two.status) == (0, 0), one.output + two.output
    assert one.evaluation["tasks"] == alone
    assert two.evaluation["tasks"] == alone
    assert two.evaluation["num_evaluators"] == 2
    assert two.evaluation["answers"] == {"computed": NUM_REQUESTS, "reused": 0}


def test_nothing_is_computed_twice(
    run: Evaluate, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle and started again; again; with more documents."""
    model = (f"model.path={reader}", *QUICK, "evaluation.tasks=[piqa,arc_easy]")
    monkeypatch.setattr("pipelines.evaluate.harness.REQUESTS_PER_TASK", 4)
    whole = run(*model, "store.url=sqlite:///whole.db", folder="whole").evaluation
    add_answers, calls = ScoreStore.add_answers, []

    def interrupted(store: ScoreStore, context: AnswerContext, answers: dict[str, Any]) -> None:
        calls.append(context)
        if len(calls) > 5:
            raise KeyboardInterrupt
        add_answers(store, context, answers)

    monkeypatch.setattr(ScoreStore, "add_answers", interrupted)
    assert run(*model).status == 130
    monkeypatch.setattr(ScoreStore, "add_answers", add_answers)
    resumed = run(*model).evaluation
    assert resumed["answers"] == {"computed": 12 * 6 - 20, "reused": 20}
    assert resumed["tasks"] == whole["tasks"]
    assert run(*model).evaluation["answers"] == {"computed": 0, "reused": 72}
    fewer = run(
        *model, "evaluation.limit=6", "evaluation.tasks=[arc_easy]", folder="fewer"
    ).evaluation
    assert fewer["answers"] == {"computed": 0, "reused": 24}, (
        "the first documents are cut at the same places"
    )


def test_perplexity_of_texts(run: Evaluate, reader: Path, tmp_path: Path) -> None:
    generator = random.Random(2)
    (tmp_path / "story.txt").write_text(sentence(generator, 300))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": sentence(generator, 40)}) + "\n" for _ in range(4))
    )
    outcome = run(
        f"model.path={reader}",
        "evaluation.texts=[story.txt,rows.jsonl]",
        "evaluation.sequence_length=64",
        "evaluation=perplexity",
        *QUICK,
    )
    assert outcome.status == 0, outcome.output
    ids = Checkpoint(reader).tokenizer()((tmp_path / "story.txt").read_text())["input_ids"]
    windows = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    with torch.inference_mode():
        logits = Checkpoint(reader).load(dtype="float32")(windows).logits[:, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert outcome.evaluation["perplexity"]["story"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert set(outcome.evaluation["perplexity"]) == {"story", "rows"}
    assert outcome.evaluation["num_windows"]["story"] == len(windows)
    assert outcome.evaluation["tasks"] == {}
    few = (
        "evaluation=perplexity",
        "evaluation.texts=[story.txt]",
        "evaluation.sequence_length=64",
        "evaluation.max_windows=2",
        *QUICK,
    )
    part = run(f"model.path={reader}", *few, folder="part").evaluation
    assert part["num_windows"] == {"story": 2}
    first = torch.nn.functional.cross_entropy(logits[:2].flatten(0, 1), windows[:2, 1:].flatten())
    assert part["perplexity"]["story"] == pytest.approx(math.exp(first), rel=1e-5)


@pytest.fixture(scope="module")
def searched(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of the tiny reader, with a store and an MLflow of its own."""
    folder = tmp_path_factory.mktemp("searched")
    save_file({"input_ids": tokens(24, 32).numpy().astype(np.int64)}, folder / "tokens.safetensors")
    outcome = run_command(
        "prune",
        *tiny_search(reader, folder / "tokens.safetensors"),
        *places(folder),
        f"output_dir={folder}/search",
    )
    assert outcome.status == 0, outcome.output
    return folder / "search"


def test_a_search_and_its_dense_model_side_by_side(
    run: Evaluate, searched: Path, reader: Path, tmp_path: Path
) -> None:
    """The numbers are on the search's MLflow run, which stays as it was; the dense model's answers
    serve every search.
    """
    outcome = run(f"run={searched}", f"output_dir={searched}", "evaluation.tasks=[piqa,arc_easy]")
    assert outcome.status == 0, outcome.output
    report = outcome.evaluation
    summary = json.loads((searched / "summary.json").read_text())
    assert (report["shape"], report["ratio"]) == (summary["shape"], summary["ratio"])
    assert set(report["tasks"]["piqa"]) == {
        "acc",
        "acc_norm",
        "acc_stderr",
        "acc_norm_stderr",
        "num_documents",
    }
    assert report["tasks"]["piqa"]["num_documents"] == 12
    assert report["average"] is None, "it is over five tasks"
    assert set(report["cost"]) >= {"dense", "pruned", "ratio"}
    assert report["cost"]["pruned"]["num_parameters"] < report["cost"]["dense"]["num_parameters"]
    assert report["cost"]["pruned"]["num_parameters"] == summary["num_stored_parameters"]["pruned"]

    client = MlflowClient(f"sqlite:///{searched.parent}/mlflow.db")
    tracked = client.get_run(json.loads((searched / "run.json").read_text())["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["eval/piqa/acc"] == report["tasks"]["piqa"]["acc"]
    assert (
        tracked.data.metrics["eval_dense/arc_easy/acc_norm"]
        == report["dense"]["tasks"]["arc_easy"]["acc_norm"]
    )
    assert tracked.data.metrics["prune/ratio"] == report["ratio"], (
        "the search's own are still there"
    )
    assert {"evaluation.json", "evaluation.csv", "summary.json"} <= {
        file.path for file in client.list_artifacts(tracked.info.run_id)
    }

    store = f"store.url=sqlite:///{searched.parent}/scores.db"
    dense = run(
        f"model.path={reader}", *QUICK, "evaluation.tasks=[piqa,arc_easy]", store, folder="dense"
    ).evaluation
    assert dense["answers"]["computed"] == 0, "the dense model's answers are there"
    assert dense["tasks"] == report["dense"]["tasks"]
    for word in ("piqa", "pruned", "stderr", "prefill"):
        assert word in outcome.output


def test_a_failed_evaluation_leaves_the_search_finished(
    run: Evaluate, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(ScoreStore, "add_answers", broken)
    assert (
        run(
            f"run={searched}",
            "evaluation.tasks=[piqa]",
            *QUICK,
            f"store.url=sqlite:///{tmp_path}/other.db",
        ).status
        == 1
    )
    run_id = json.loads((searched / "run.json").read_text())["mlflow_run_id"]
    assert (
        MlflowClient(f"sqlite:///{searched.parent}/mlflow.db").get_run(run_id).info.status
        == "FINISHED"
    )


def test_shapes_share_nothing(run: Evaluate, searched: Path, tmp_path: Path) -> None:
    """The same checkpoint, order, tasks and texts in another shape are computed anew, and give
    other numbers.
    """
    (tmp_path / "story.txt").write_text(sentence(random.Random(2), 300))
    what = (
        "evaluation.tasks=[piqa]",
        "evaluation.texts=[story.txt]",
        "evaluation.sequence_length=64",
        "evaluation.dense=false",
        *QUICK,
    )
    what += (f"store.url=sqlite:///{tmp_path}/alone.db",)
    first = run(f"run={searched}", *what, folder="first").evaluation
    assert first["answers"]["reused"] == 0
    shorter = shutil.copytree(searched, tmp_path / "shorter", ignore=shutil.ignore_patterns(".*"))
    lines = (searched / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (shorter / "trajectory.jsonl").write_text("".join(lines[:-1]))
    (shorter / "summary.json").unlink()
    second = run(f"run={shorter}", *what, folder="second")
    assert "has not ended" in second.output
    assert second.evaluation["answers"]["reused"] == 0
    assert second.evaluation["answers"]["computed"] == first["answers"]["computed"]
    assert second.evaluation["perplexity"] != first["perplexity"]


def test_a_shape_is_the_masked_model(reader: Path, searched: Path) -> None:
    past = read_run(str(searched))
    windows = torch.randint(1, 200, (2, 40), generator=torch.Generator().manual_seed(1))
    evaluator = BenchmarkEvaluator(
        BenchmarkSpec(past.checkpoint, "float32", past.shape.text, past.order)
    )
    answers = evaluator.run(WindowTask.of(windows.numpy())).answers
    dense = LoadedModel.of(past.checkpoint.load(dtype="float32"))
    reorder(dense, past.order)
    with masked(dense, ModelShape.parse(past.shape.text)):
        expected = sequence_nll(dense.model, windows).tolist()
    assert list(answers) == pytest.approx(expected, rel=1e-5)


def lm_evals_own_command(
    checkpoint: Path, data_dir: Path, scratch: Path
) -> dict[str, dict[str, Any]]:
    """What `lm_eval` says of piqa and arc_easy, in a process of its own that has nothing of ours."""
    (scratch / "tasks").mkdir()
    for name, split in (("piqa", "validation"), ("arc_easy", "test")):
        files = {"data_files": {split: str(data_dir / f"{name}_{split}.jsonl")}}
        task = {
            "include": str(stock_tasks()[name]),
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": files,
            "training_split": None,
        }
        task |= {"validation_split": None} if split == "test" else {"test_split": None}
        (scratch / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task | {"task": name}))
    model = [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={checkpoint},trust_remote_code=True,dtype=float32",
        "--device",
        "cpu",
        "--batch_size",
        "1",
    ]
    tasks = [
        "--tasks",
        "piqa,arc_easy",
        "--include_path",
        str(scratch / "tasks"),
        "--output_path",
        str(scratch / "lm_eval.json"),
    ]
    environment = os.environ | {
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    command = [str(Path(sys.executable).with_name("lm_eval")), *model, *tasks]
    done = subprocess.run(
        command,
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = [path for path in scratch.rglob("lm_eval*.json") if path.is_file()]
    found = json.loads(path.read_text())
    return {
        name: task_results(found["results"][name], found["n-samples"][name])
        for name in ("piqa", "arc_easy")
    }


def test_an_export(
    run: Evaluate, cli: Cli, searched: Path, reader: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Numbers of the folder are those of the search's shape and of lm-eval's own command; a folder
    that was changed is refused.
    """
    assert cli("export", f"run={searched}").status == 0
    what = ("evaluation.tasks=[piqa,arc_easy]",)
    alone = run(f"checkpoint={tmp_path / 'export'}", *QUICK, *what, folder="alone")
    assert alone.evaluation["dense"] is None
    outcome = run(
        f"checkpoint={tmp_path / 'export'}", f"model.path={reader}", *what, folder="exported"
    )
    assert outcome.status == 0, outcome.output
    searched_report = run(f"run={searched}", *QUICK, *what, folder="searched").evaluation
    assert outcome.evaluation["tasks"] == searched_report["tasks"]
    assert outcome.evaluation["dense"] == searched_report["dense"]
    assert outcome.evaluation["shape"] == searched_report["shape"]
    assert outcome.evaluation["cost"]["ratio"]["num_parameters"] < 1
    assert (
        lm_evals_own_command(tmp_path / "export", data_dir, tmp_path) == alone.evaluation["tasks"]
    )
    with (tmp_path / "export" / "config.json").open("a") as file:
        file.write("\n")
    refused = run(f"checkpoint={tmp_path / 'export'}", *what, folder="changed")
    assert refused.status == 2
    assert "SHA-256 differs" in refused.errors[0]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ((), ["run, checkpoint, model.path: none is given"]),
        (("run=a", "model.path=b"), ["run, model.path: give one of them"]),
        (
            ("model.path={reader}", "evaluation.tasks=[piqua]"),
            ["evaluation.tasks: lm-eval has no task 'piqua'; did you mean piqa"],
        ),
        (
            ("model.path={reader}", "evaluation.tasks=[piqa,sciq,boolq]"),
            [
                "no file for sciq in {data}: it takes sciq_test.jsonl or sciq.jsonl",
                "no file for boolq",
            ],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir=nowhere"),
            ["evaluation.data_dir: no folder nowhere"],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir={bad}", "evaluation.tasks=[piqa]"),
            ["the rows of piqa are not what the task needs", "baber/piqa"],
        ),
        (
            ("model.path={reader}", "evaluation.data_dir={torn}", "evaluation.tasks=[piqa]"),
            ["the file of piqa in {torn} cannot be read"],
        ),
        (
            ("model.path={reader}", "evaluation.limit=0", "evaluation.num_fewshot=-1"),
            ["num_fewshot: -1; at least 0", "evaluation.limit: 0; at least 1"],
        ),
        (
            ("model.path={reader}", "evaluation.texts=[missing.txt]", "evaluation.tasks=[piqua]"),
            ["missing.txt is neither wikitext2 nor a file", "piqua"],
        ),
        (
            ("model.path={reader}", "evaluation.texts=[{short}]"),
            ["short.txt is shorter than one window of 320 tokens"],
        ),
        (
            ("model.path={reader}", "evaluation.sequence_length=1000"),
            ["above this model's context of 320 tokens"],
        ),
        (
            ("model.path={reader}", "evaluation.cost_prompt_tokens=1000"),
            ["evaluation.cost_prompt_tokens, evaluation.cost_new_tokens: 1000 + 32"],
        ),
        (
            ("model.path={reader}", "evaluation.num_fewshot=2", "evaluation.tasks=[piqa]"),
            ["2 examples of piqa come from its train split; add piqa_train"],
        ),
        (("run={bad}",), ["has no run.json"]),
        (("checkpoint={reader}",), ["has no multipruner.json"]),
        (("model.path={reader}", "evaluation=none"), ["evaluation: nothing to measure"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_bad_input(
    run: Evaluate,
    overrides: tuple[str, ...],
    messages: list[str],
    reader: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    """One message for each mistake, all at once, before a model is loaded."""
    places = {
        "reader": reader,
        "data": data_dir,
        "bad": tmp_path / "bad",
        "torn": tmp_path / "torn",
        "short": tmp_path / "short.txt",
    }
    places["bad"].mkdir()
    (places["bad"] / "piqa.jsonl").write_text('{"question": "why", "label": 0}\n')
    places["torn"].mkdir()
    (places["torn"] / "piqa.jsonl").write_text('{"goal": "why", "sol1"\n')
    places["short"].write_text("the cat")
    outcome = run(*(word.format(**places) for word in overrides))
    assert outcome.status == 2, outcome.output
    assert len(outcome.errors) == (1 if messages[-1] == "baber/piqa" else len(messages)), (
        outcome.output
    )
    for message in messages:
        assert message.format(**places) in "\n".join(outcome.errors), outcome.output


def test_without_the_hub(run: Evaluate, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", away)
    outcome = run(
        f"model.path={reader}",
        "evaluation.data_dir=null",
        "evaluation.tasks=[piqa]",
        "evaluation.texts=[wikitext2]",
    )
    assert outcome.status == 2
    assert (
        "evaluation.texts: dataset 'Salesforce/wikitext' is neither in the local cache"
        in outcome.errors[0]
    )
    assert (
        "evaluation.tasks: piqa needs the dataset baber/piqa, which is neither in the local cache"
        in outcome.errors[1]
    )
    assert "evaluation.data_dir=FOLDER" in outcome.errors[1]
