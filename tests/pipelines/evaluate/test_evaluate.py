"""pipelines.evaluate: the harness's own numbers, spread over evaluators, never computed twice,
never shared between shapes.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from pipelines.evaluate.harness import task_results
from pipelines.runs.saved_run import read_run
from pipelines.store.scores import AnswerContext, ScoreStore
from pruning.importance.channel_order import reorder
from pruning.models.checkpoint import Checkpoint
from pruning.models.loaded_model import LoadedModel
from pruning.scoring.masking import masked
from pruning.scoring.nll import sequence_nll
from pruning.shape import ModelShape
from tests.documents import NUM_REQUESTS, TASKS, sentence
from tests.pipelines.evaluate.conftest import QUICK, Evaluate
from workers.cluster.machine import LocalMachine
from workers.evaluators.benchmarks import BenchmarkEvaluator
from workers.pool.ray_pool import RayPool
from workers.tasks import BenchmarkSpec, WindowTask

TWO = ("cluster=local", "cluster.num_evaluators=2", "cluster.num_gpus_per_evaluator=0")


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
@pytest.mark.slow
def test_equals_the_harness_alone(
    run: Evaluate,
    reader: Path,
    data_dir: Path,
    local_cluster: LocalMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every metric and standard error of every kind of task, to the last digit, with one
    evaluator and with two.
    """
    # On a busy machine the first one is done before the second one has started.
    monkeypatch.setattr(RayPool, "wait", lambda pool: iter(pool.describe()))
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

    search, heading, note = tracked.data.tags["mlflow.note.content"].partition("## Measured")
    assert "of the parameters removed" in search
    assert heading
    assert "| piqa, acc norm |" in note
    assert f"multipruner evaluate run={searched}" in note

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
