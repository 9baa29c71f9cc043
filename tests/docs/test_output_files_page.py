"""docs/reference/output_files.md against what the commands really write, field by field."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.docs.pages import Page
from tests.documents import save_reader, save_tasks, sentence

PAGE = Page(ROOT / "docs/reference/output_files.md")
SEARCH = (
    "model.path=reader",
    "model.dtype=float32",
    "calibration=text",
    "calibration.path=text.txt",
    "calibration.num_block_samples=4",
    "calibration.num_width_samples=4",
    "calibration.num_heldout_samples=2",
    "calibration.sequence_length=32",
    "calibration.batch_size=2",
    "search.mlp_group_channels=16",
    "cluster=inline",
    "store.url=sqlite:///scores.db",
    "tracking.uri=sqlite:///mlflow.db",
)


@dataclass(frozen=True)
class Field:
    """A row of the page. `name` has keys in capitals that stand for any."""

    name: str
    type: str

    @property
    def optional(self) -> bool:
        return self.type.endswith("optional")

    @property
    def pattern(self) -> re.Pattern[str]:
        """Of a written path, in which `/` separates keys, since keys may have dots in them."""
        keys = [re.escape(key) for key in self.name.split(".")]
        return re.compile("[/.]".join(re.sub(r"^[A-Z]+$", "[^/]+", key) for key in keys))


def documented(file: str, part: int = 0) -> list[Field]:
    tables = [rows for heading, rows in PAGE.tables() if heading == file]
    return [Field(row[0].strip("`"), row[1]) for row in tables[part]]


def paths(data: Any, above: str = "") -> Iterator[tuple[str, bool]]:
    """Every path of some JSON, and whether it is a leaf."""
    items = data.items() if isinstance(data, dict) else ()
    if isinstance(data, list) and any(isinstance(element, dict) for element in data):
        yield above, False
        for element in data:
            yield from paths(element, above + "[]")
        return
    if above:
        yield above, not isinstance(data, dict)
    for key, value in items:
        yield from paths(value, f"{above}/{key}" if above else key)


def differences(fields: list[Field], *written: Any) -> dict[str, list[str]]:
    """What is written and not documented, and what is documented and not written."""
    found = dict(pair for data in written for pair in paths(data))
    names = {field.name for field in fields}
    whole = [  # objects and lists whose own fields are documented elsewhere
        field for field in fields if not any(name.startswith(field.name + ".") for name in names)
    ]
    unknown = [
        path
        for path, leaf in found.items()
        if leaf
        and not any(field.pattern.fullmatch(path) for field in fields)
        and not any(
            field.type.startswith("object") and field.pattern.match(path.rpartition("/")[0])
            for field in whole
        )
    ]
    absent = [
        field.name
        for field in fields
        if not field.optional and not any(field.pattern.fullmatch(path) for path in found)
    ]
    return {"written, not documented": unknown, "documented, not written": absent}


NOTHING: dict[str, list[str]] = {"written, not documented": [], "documented, not written": []}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a search with evaluation and export, of a sweep, a plan and a verdict."""
    folder = tmp_path_factory.mktemp("written")
    save_reader(folder / "reader")
    save_tasks(folder / "tasks", 4)
    (folder / "text.txt").write_text("\n\n".join(_sentences()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, words in COMMANDS.items():
            patch.setattr(sys, "argv", [command, *words, f"output_dir={command}"])
            with suppress(SystemExit):  # without its files the tests fail
                runpy.run_module(f"pipelines.{command}", run_name="__main__")
    return folder


COMMANDS = {
    "prune": (
        *SEARCH,
        "search.target_ratio=0.2",
        "search.distribution=[40,40,20]",
        "search.head_group_channels=16",
        "evaluation=zero_shot",
        "evaluation.tasks=[piqa]",
        "evaluation.data_dir=tasks",
        "evaluation.texts=[text.txt]",
        "evaluation.max_windows=2",
        "evaluation.cost_rounds=1",
        "export=transformers",
    ),
    "sweep": (
        *SEARCH,
        "search=[blockpruner,shortgpt,uniform,allocation]",
        "search.target_ratio=0.1",
    ),
    "plan": (*SEARCH, "search=allocation", "search.target_ratio=0.1"),
    "reproduce": ("experiment=multipruner/llama2_7b_22",),
    "latency": (
        "model.path=reader",
        "cluster=inline",
        "prompt_tokens=4",
        "new_tokens=2",
        "rounds=1",
        "widths=[16]",
    ),
    "solve": ("run=sweep/allocation", "search.target_ratio=0.1"),
    "recover": (
        "run=sweep/allocation",
        "recovery.steps=4",
        "recovery.warmup_steps=1",
        "recovery.sequence_length=32",
        "recovery.num_heldout_sequences=4",
        "recovery.rank=2",
        "recovery.learning_rate=0.01",
        "recovery.checkpoint_every=2",
    ),
}


def _sentences() -> list[str]:
    import random

    generator = random.Random(1)
    return [sentence(generator, 60) for _ in range(60)]


def read(path: Path) -> Any:
    lines = path.read_text().splitlines()
    return (
        [json.loads(line) for line in lines]
        if path.suffix == ".jsonl"
        else json.loads("\n".join(lines))
    )


@pytest.mark.parametrize(
    ("file", "path", "part"),
    [
        ("run.json", "prune/run.json", 0),
        ("run.json", "sweep/run.json", 1),
        ("run.json", "sweep/uniform/run.json", 0),
        ("block_influence.json", "sweep/shortgpt/block_influence.json", 0),
        ("allocation.json", "sweep/allocation/allocation.json", 0),
        ("solution.json", "solve/solution.json", 0),
        ("latency.json", "latency/latency.json", 0),
        ("recovery.json", "recover/recovery.json", 0),
        ("status.json", "prune/status.json", 0),
        ("status.json", "recover/status.json", 0),
        ("shape.json", "prune/shape.json", 0),
        ("pruning_config.json", "prune/pruning_config.json", 0),
        ("summary.json", "prune/summary.json", 0),
        ("summary.json", "sweep/allocation/summary.json", 0),
        ("evaluation.json", "prune/evaluation.json", 0),
        ("sweep.json", "sweep/sweep.json", 0),
        ("plan.json", "plan/plan.json", 0),
        ("verdict.json", "reproduce/verdict.json", 0),
        ("multipruner.json", "prune/transformers/multipruner.json", 0),
    ],
)
def test_the_fields_of_a_file_are_those_on_the_page(
    written: Path, file: str, path: str, part: int
) -> None:
    assert differences(documented(file, part), read(written / path)) == NOTHING


def test_the_fields_of_a_step_are_those_on_the_page(written: Path) -> None:
    steps = read(written / "prune/trajectory.jsonl")
    assert {step["stage"] for step in steps} == {"block", "mlp_channels", "attention_heads"}
    assert differences(documented("trajectory.jsonl"), *steps) == NOTHING
    steps = read(written / "sweep/allocation/trajectory.jsonl")
    assert differences(documented("trajectory.jsonl"), *steps) == NOTHING
    updates = read(written / "recover/recovery.jsonl")
    assert differences(documented("recovery.jsonl"), *updates) == NOTHING


def test_the_columns_of_the_evaluation_are_those_on_the_page(written: Path) -> None:
    with (written / "prune/evaluation.csv").open() as file:
        header = next(csv.reader(file))
    assert header == [field.name for field in documented("evaluation.csv")]


def test_the_tensors_of_the_channel_order_are_those_on_the_page(written: Path) -> None:
    tensors = load_file(written / "prune/channel_order.safetensors")
    assert sorted(tensors) == [field.name for field in documented("channel_order.safetensors")]


def test_the_tensors_of_the_statistics_are_those_on_the_page(written: Path) -> None:
    tensors = load_file(written / "sweep/uniform/statistics.safetensors")
    found = {re.sub(r"^\d+", "LAYER", name) for name in tensors}
    assert found == {field.name for field in documented("statistics.safetensors")}


def test_every_file_of_a_run_is_on_the_page(written: Path) -> None:
    names = {
        path.name
        for folder in ("prune", "sweep", "sweep/shortgpt", "sweep/allocation", "latency", "recover")
        for path in (written / folder).iterdir()
        if path.is_file() and not path.name.startswith(".")
    }
    assert len(names) > 14
    text = PAGE.text.replace("[`.csv`](#evaluationcsv)", "`evaluation.csv`")
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_a_field_that_one_of_both_lacks_is_found() -> None:
    fields = [Field("a", "object"), Field("a.b", "count"), Field("c.NAME", "count")]
    fields += [Field("d[].e", "text"), Field("f", "count, optional")]
    data = {"a": {"b": 1, "x": 1}, "c": {"p.q": 1, "r": {"s": 1}}, "d": [{"e": ""}, {"y": ""}]}
    assert differences(fields, data) == {
        "written, not documented": ["a/x", "c/r/s", "d[]/y"],
        "documented, not written": [],
    }
    assert differences(fields, {"a": {}})["documented, not written"] == ["a.b", "c.NAME", "d[].e"]
