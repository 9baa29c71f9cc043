"""lm-eval's tasks by name: found in the harness, or with their documents in JSON Lines files of the
user's own. Every problem at once.
"""

from __future__ import annotations

import difflib
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import InputError

_TASK_LINE = re.compile(
    rb"""^task:[ \t]*["']?([^\s"'#\[]+)["']?[ \t]*(?:\#.*)?\r?$""", re.MULTILINE
)
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@contextmanager
def task_manager(
    names: Sequence[str], data_dir: str | None, num_fewshot: int | None = None
) -> Iterator[Any]:
    """A `TaskManager` of lm-eval that knows these tasks.

    Their documents are loaded once, so that what is missing is known now.

    Args:
        data_dir: a folder with `<task>.jsonl` or `<task>_<split>*.jsonl` for every task, in the
            task's native columns; None takes the hub's.
        num_fewshot: examples that will be asked for; None: each task's own number.

    Raises:
        InputError: unknown tasks, missing files, a hub that cannot be reached, or rows that are not
            what the task needs.
    """
    import datasets

    datasets.disable_progress_bars()  # one bar is shown, ours
    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns of every metric whose defaults a stock task relies on
    with tempfile.TemporaryDirectory(prefix="multipruner-tasks-") as scratch:
        manager = (
            _stock_manager(names)
            if data_dir is None
            else _local_manager(names, Path(data_dir).expanduser(), Path(scratch), num_fewshot)
        )
        _check_documents(manager, names, data_dir)
        yield manager


@cache
def stock_tasks() -> Mapping[str, Path]:
    """Where the harness describes each of its tasks.

    Read by pattern: its own index of 14,000 files takes 10 s.
    """
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    found: dict[str, Path] = {}
    for path in sorted((Path(spec.submodule_search_locations[0]) / "tasks").rglob("*.yaml")):
        match = _TASK_LINE.search(path.read_bytes())
        if match:
            found.setdefault(match[1].decode(), path)
    return found


def _stock_manager(names: Sequence[str]) -> Any:
    from lm_eval.tasks import TaskManager

    stock = stock_tasks()
    if all(name in stock for name in names):
        return TaskManager(
            include_defaults=False, include_path=sorted({str(stock[name].parent) for name in names})
        )
    manager = TaskManager()  # groups and tags too
    _refuse_unknown(names, manager.all_tasks)
    return manager


def _local_manager(
    names: Sequence[str], folder: Path, scratch: Path, num_fewshot: int | None
) -> Any:
    from lm_eval.tasks import TaskManager

    if not folder.is_dir():
        raise InputError(
            f"evaluation.data_dir: no folder {folder}; give one with a file <task>.jsonl or "
            "<task>_<split>.jsonl for each of evaluation.tasks"
        )
    stock = stock_tasks()
    _refuse_unknown(
        names, stock, "; with evaluation.data_dir, name single tasks and not groups of them"
    )
    problems = []
    for name in names:
        try:
            (scratch / f"{name}.yaml").write_text(
                yaml.safe_dump(
                    _local_description(name, stock[name], folder, num_fewshot), sort_keys=False
                )
            )
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return TaskManager(include_defaults=False, include_path=str(scratch))


def _local_description(
    name: str, stock: Path, folder: Path, num_fewshot: int | None
) -> dict[str, Any]:
    """The stock task with its documents in files: what the harness reads instead of the hub."""
    from lm_eval.tasks._yaml_loader import load_yaml

    stock_config = load_yaml(stock, resolve_func=False)
    splits = {split: str(stock_config[split]) for split in _SPLITS if stock_config.get(split)}
    files = _files_of(name, splits, folder)
    own = stock_config.get("num_fewshot")
    wanted = (
        own if num_fewshot is None or own == 0 else num_fewshot
    )  # a 0 of the task's own stands, the harness has it
    examples = (
        splits.get("fewshot_split")
        or splits.get("training_split")
        or splits.get("validation_split")
    )
    if wanted and examples and examples not in files:
        # The harness would take them from the very documents that it measures.
        raise InputError(
            f"evaluation.num_fewshot: {wanted} examples of {name} come from its {examples} "
            f"split; add {name}_{examples}.jsonl to {folder}"
        )
    description: dict[str, Any] = {
        "include": str(stock),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
    }
    description["dataset_kwargs"] = {
        "data_files": {split: str(path) for split, path in files.items()}
    }
    return description | {option: None for option, split in splits.items() if split not in files}


def _files_of(name: str, splits: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """The file of each split that there is one for.

    `<task>.jsonl` is what the task is measured on: its test split, else its validation split.
    """
    measured = (
        splits.get("test_split")
        or splits.get("validation_split")
        or splits.get("training_split")
        or "test"
    )
    found: dict[str, Path] = {}
    for split in dict.fromkeys(splits.values()):
        files = sorted(path for path in folder.glob(f"{name}_{split}*.jsonl") if path.is_file())
        if split == measured and (folder / f"{name}.jsonl").is_file():
            files.append(folder / f"{name}.jsonl")
        if len(files) > 1:
            names = " and ".join(path.name for path in files)
            raise InputError(
                f"evaluation.data_dir: {folder} has {names} for the {split} split of {name}; "
                "leave one"
            )
        if files:
            found[split] = files[0]
    if not {splits.get("test_split"), splits.get("validation_split"), measured} & set(found):
        raise InputError(
            f"evaluation.data_dir: no file for {name} in {folder}: it takes "
            f"{name}_{measured}.jsonl or {name}.jsonl, in the columns of the dataset that "
            f"lm-eval uses for it; add it, or leave {name} out of evaluation.tasks"
        )
    return found


def _refuse_unknown(
    names: Sequence[str], known: Sequence[str] | Mapping[str, Any], hint: str = ""
) -> None:
    problems = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=3)
            meant = (
                f"; did you mean {' or '.join(close)}?"
                if close
                else "; `lm_eval ls tasks` lists those that there are"
            )
            problems.append(f"evaluation.tasks: lm-eval has no task {name!r}{meant}{hint}")
    if problems:
        raise InputError("\n".join(problems))


def _check_documents(manager: Any, names: Sequence[str], data_dir: str | None) -> None:
    """Loads the documents of every task, and makes question and choices of the first one."""
    problems = []
    for name in names:
        try:
            tasks = manager.load([name])["tasks"]
        # Hub, network, file system and the readers of the data raise whatever they like.
        except Exception as error:  # noqa: BLE001
            problems.append(_unloadable(name, error, data_dir))
            continue
        for task in tasks.values():
            problems += _wrong_rows(task, data_dir)
    if problems:
        raise InputError("\n".join(problems))


def _unloadable(name: str, error: Exception, data_dir: str | None) -> str:
    if not isinstance(error, (OSError, JSONDecodeError)) and not type(error).__module__.startswith(
        ("datasets", "huggingface_hub", "pyarrow")
    ):
        return _unusable(
            name, error, data_dir
        )  # the documents are there: the harness has begun to use them
    reason = _reason(error)
    if data_dir is not None:
        return (
            f"evaluation.data_dir: the file of {name} in {data_dir} cannot be read: {reason}; "
            "it takes one JSON object a line, in the task's native columns"
        )
    dataset = _dataset_of(name)
    return (
        f"evaluation.tasks: {name} needs the dataset {dataset}, which is neither in the local "
        f"cache nor to be had from the hub ({reason}). Put its rows into "
        f"a folder as {name}_<split>.jsonl and give evaluation.data_dir=FOLDER, or download it "
        "on a machine with network"
    )


def _dataset_of(name: str) -> str:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = stock_tasks().get(name)
    config = load_yaml(path, resolve_func=False) if path else {}
    return (
        " ".join(
            str(part) for part in (config.get("dataset_path"), config.get("dataset_name")) if part
        )
        or "of its description"
    )


def _wrong_rows(task: Any, data_dir: str | None) -> list[str]:
    try:
        documents = task.eval_docs
        if not len(documents):
            return [f"evaluation.tasks: {task.config.task} has no documents"]
        task.doc_to_text(documents[0])
        task.doc_to_target(documents[0])
        if task.config.doc_to_choice is not None:
            task.doc_to_choice(documents[0])
    # Templates and functions of a task fail in ways of their own on rows of another kind.
    except Exception as error:  # noqa: BLE001
        return [_unusable(task.config.task, error, data_dir)]
    return []


def _unusable(name: str, error: Exception, data_dir: str | None) -> str:
    option = "evaluation.tasks" if data_dir is None else "evaluation.data_dir"
    return (
        f"{option}: the rows of {name} are not what the task needs ({_reason(error)}); it "
        f"takes the columns of the dataset {_dataset_of(name)}"
    )


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__
