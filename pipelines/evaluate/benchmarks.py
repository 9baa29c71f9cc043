"""What models are measured on, all of it there and readable: tasks of lm-eval, windows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipelines.config.groups import EvaluationConfig
from pipelines.evaluate.local_tasks import task_manager
from pruning.calibration.sources import measured_text
from pruning.calibration.token_sets import TokenSet
from pruning.calibration.windows import text_windows
from pruning.errors import InputError
from workers.tasks import WindowTask

_TOKENS_PER_TASK = 2048
"""Windows that are shorter than this run together, up to so many tokens."""

FIVE_TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")
"""The papers' average is over these (docs/concepts/method.md, "Published settings")."""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmarks:
    """Everything that is measured.

    Args:
        windows: int64 [windows, tokens] of each text, by its name.
        manager: the `TaskManager` of lm-eval that knows the tasks.
    """

    tasks: tuple[str, ...]
    windows: Mapping[str, TokenSet]
    manager: Any

    def window_tasks(self, text: str) -> list[WindowTask]:
        """The windows of a text, always cut at the same places."""
        tokens = self.windows[text]
        rows = max(1, _TOKENS_PER_TASK // tokens.sequence_length)
        return [WindowTask.of(batch, text) for batch in tokens.batches(rows)]

    @property
    def num_window_tokens(self) -> int:
        return sum(int(tokens.input_ids.size) for tokens in self.windows.values())


@contextmanager
def open_benchmarks(
    evaluation: EvaluationConfig, tokenizer: Callable[[], PreTrainedTokenizerBase], length: int
) -> Iterator[Benchmarks]:
    """Reads texts and tasks, so that what is missing is known before anything expensive starts.

    Args:
        tokenizer: called only if there are texts.
        length: tokens of a window.

    Raises:
        InputError: with every problem at once.
    """
    problems: list[str] = []
    windows: dict[str, TokenSet] = {}
    for name in evaluation.texts:
        try:
            label, tokens = _windows(name, evaluation, tokenizer, length)
            if label in windows:
                raise InputError(f"evaluation.texts: two of them are called {label}; rename one")
            windows[label] = tokens
        except InputError as error:
            problems.append(str(error))
    with ExitStack() as stack:
        manager = None
        if evaluation.tasks:
            try:
                manager = stack.enter_context(
                    task_manager(
                        list(evaluation.tasks), evaluation.data_dir, evaluation.num_fewshot
                    )
                )
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError("\n".join(problems))
        yield Benchmarks(tuple(evaluation.tasks), windows, manager)


def average(tasks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The papers' average: acc_norm, acc for tasks without one, over the five tasks; None unless
    all five are there.
    """
    if any(name not in tasks for name in FIVE_TASKS):
        return None
    values = [tasks[name].get("acc_norm", tasks[name].get("acc")) for name in FIVE_TASKS]
    return None if any(value is None for value in values) else math.fsum(values) / len(values)


def average_stderr(tasks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Standard error of `average`: the five tasks have no documents in common.

    None where that is none, or a task has no standard error.
    """
    if average(tasks) is None:
        return None
    found = [
        tasks[name].get("acc_norm_stderr" if "acc_norm" in tasks[name] else "acc_stderr")
        for name in FIVE_TASKS
    ]
    errors = [error for error in found if error is not None]
    return math.hypot(*errors) / len(errors) if len(errors) == len(found) else None


def _windows(
    name: str,
    evaluation: EvaluationConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    length: int,
) -> tuple[str, TokenSet]:
    folder = Path(evaluation.data_dir).expanduser() if evaluation.data_dir else None
    text = measured_text(name, option="evaluation.texts", folder=folder)
    tokens = text_windows(tokenizer(), text, length)
    if not len(tokens):
        raise InputError(
            f"evaluation.texts: {name} is shorter than one window of {length} tokens; set a "
            "smaller evaluation.sequence_length"
        )
    return Path(name).stem if name != "wikitext2" else name, TokenSet(
        tokens[: evaluation.max_windows]
    )
