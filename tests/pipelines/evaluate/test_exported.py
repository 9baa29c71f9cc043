"""An exported folder is measured as lm-eval's own command measures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipelines.evaluate.harness import task_results
from pipelines.evaluate.local_tasks import stock_tasks
from tests.pipelines.conftest import Cli
from tests.pipelines.evaluate.conftest import QUICK, Evaluate


def lm_evals_own_command(
    checkpoint: Path, data_dir: Path, scratch: Path
) -> dict[str, dict[str, Any]]:
    """What `lm_eval` says of piqa and arc_easy, in a process that has nothing of ours."""
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
