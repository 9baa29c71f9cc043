"""The end of a disturbed search: what it must have in common with one that nobody disturbed."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from pipelines.prune.search_run import ARTIFACTS
from pipelines.tracking.metrics import step_metrics
from tests.cluster.command import Command
from tests.cluster.scene import Scene, eventually_none
from tests.pipelines.command import without_times

_SCORES = "SELECT context, shape, batch, nll, num_tokens FROM scores ORDER BY context, shape, batch"


def compare(scene: Scene, alone: Command) -> None:
    """The end of the search against one undisturbed process, the store, and MLflow."""
    story, folder = scene.story, scene.search.output_dir
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "target reached"
    assert scene.evaluator_processes() == [] or eventually_none(scene.evaluator_processes) == []

    stored = scene.num_stored()
    scored = summary["evaluations"]["scored"]
    assert scored == stored - scene.stored_at_kill, "the second driver scored something again"
    story.tell(
        f"{stored} evaluations are stored; the second driver scored {scored}, which are those "
        f"that the first had not stored ({scene.stored_at_kill})"
    )
    check_losses(scene, summary)
    check_mlflow(scene, summary)

    if alone.is_running:
        story.tell(
            f"waiting for the undisturbed search in one process: {alone.num_steps()} steps are done"
        )
        alone.hurry()
    assert alone.wait(1200) == 0, alone.tail()
    assert without_times(folder / "trajectory.jsonl") == without_times(
        alone.output_dir / "trajectory.jsonl"
    )
    assert (folder / "shape.json").read_bytes() == (alone.output_dir / "shape.json").read_bytes()
    with sqlite3.connect(alone.output_dir.parent / "alone.db") as connection:
        theirs = connection.execute(_SCORES).fetchall()
    assert scene.postgres.execute(_SCORES, scene.database) == theirs
    story.tell(
        f"trajectory ({scene.search.num_steps()} steps), final shape and all {len(theirs)} "
        "scores are those of the undisturbed search, to the last byte"
    )


def check_losses(scene: Scene, summary: Mapping[str, Any]) -> None:
    first, second = scene.status_at_kill, summary
    kinds = Counter(first["faults"]) + Counter(second["faults"])
    losing = [row for row in scene.story.rows if row.kind is not None]
    assert kinds == Counter(row.kind for row in losing)
    lost = first["lost_evaluations"] + second["lost_evaluations"]
    in_flight = sum(int(row.in_flight) for row in losing)
    assert lost <= in_flight
    scene.story.tell(
        f"{lost} evaluations were lost with {len(losing)} evaluators, where {in_flight} were in "
        f"flight; the longest task seen has {scene.search.longest_task}"
    )


def check_mlflow(scene: Scene, summary: Mapping[str, Any]) -> None:
    """Every step exactly once, with the values of the journal."""
    client = MlflowClient(scene.mlflow.uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "cluster-test"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == summary["tracking"]["run_id"]
    assert run.info.status == "FINISHED"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    written = {path.name for path in scene.search.output_dir.iterdir()}
    assert artifacts == written & set(ARTIFACTS)  # some are for other strategies
    assert artifacts >= {"trajectory.jsonl", "shape.json", "summary.json", "config.yaml"}
    lines = [
        json.loads(line)
        for line in (scene.search.output_dir / "trajectory.jsonl").read_text().splitlines()
    ]
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in step_metrics(line).items():
            if value is not None:
                expected.setdefault(name, []).append((line["step"], float(value)))
    for name, points in expected.items():
        history = sorted(
            (metric.step, metric.value)
            for metric in client.get_metric_history(run.info.run_id, name)
        )
        if name in (
            "prune/perplexity",
            "prune/nll",
            "prune/ratio",
            "prune/num_parameters",
            "prune/flops_per_token",
        ):
            assert history[0][0] == 0, f"{name}: the dense model is missing"
            history = history[1:]
        assert history == points, name
    [dense] = [
        metric.value
        for metric in client.get_metric_history(run.info.run_id, "prune/perplexity")
        if metric.step == 0
    ]
    assert dense == summary["perplexity"]["block"]["dense"]
    scene.story.tell(
        f"MLflow: one run, finished, steps 0 to {len(lines)} once each with the journal's "
        f"values, {len(artifacts)} artifacts"
    )
