"""One search, by its folder: how it went, what it came to, and what can be done with that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multipruner.words import run_command
from pruning.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipelines.cli.launch import Job
    from pipelines.runs.saved_run import PastRun, SavedRun
    from pruning.shape import ModelShape


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """A picture of a run; a notebook shows it."""

    path: Path

    def __repr__(self) -> str:
        """By its name alone: notebooks are passed on, and keep it."""
        return f"Picture({self.path.name})"

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class Run:
    """A search that has ended, or as far as it came.

    What it says is read from its folder; model and tokenizer stay in memory once they are asked
    for. All of it raises InputError where a file of the folder is missing or damaged.

    A recovery is one, too: its search with the trained model. Of a shape file that was recovered
    there is no search, and no trajectory.

    Args:
        folder: its `output_dir`.
    """

    folder: Path

    @property
    def trajectory(self) -> DataFrame:
        """A row a step, in their order: what docs/reference/output_files.md says of
        `trajectory.jsonl`, with `removed` as `kind`, `layer` and `remaining` (channels or KV
        heads), and of `candidates` their number.
        """
        import pandas as pd

        from pruning.shape import Removal

        rows = []
        for line in self._saved.lines:
            removed = Removal.from_json(line["removed"])
            of_block = {name: getattr(removed, name) for name in ("kind", "layer", "remaining")}
            others = {name: value for name, value in line.items() if name != "removed"}
            rows.append(of_block | others | {"candidates": len(line["candidates"])})
        return pd.DataFrame(rows).set_index("step")

    @property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None if the search has not ended."""
        return self._saved.summary

    @property
    def shape(self) -> ModelShape:
        """What remains of every layer after the last step."""
        from pipelines.runs.saved_run import read_recovery
        from pruning.shape import ModelShape

        if (recovery := read_recovery(str(self.folder))) is not None:
            return recovery.shape
        return ModelShape.parse(self._saved.lines[-1]["shape"])

    def at(self, ratio: float) -> ModelShape:
        """The shape after the first step that removed this ratio or more. Of an allocation, the
        way to its own target; `multipruner solve` finds the best shape for another.

        Args:
            ratio: removed / all parameters, above 0.

        Raises:
            InputError: no step did.
        """
        return self._saved.shape_at(ratio)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The pruned model, compensated if the search was and trained if it was recovered, on the
        CPU, in evaluation mode and in the type that the search scored in.

        Raises:
            InputError: the dense model is not where it was, or not what it was.
        """
        from pipelines.runs.pruned_model import pruned_model

        return pruned_model(self._past)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the dense model.

        Raises:
            InputError: it has none that can be opened.
        """
        return self._past.checkpoint.tokenizer()

    def evaluate(
        self,
        tasks: Sequence[str] | None = None,
        texts: Sequence[str | Path] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Measures the pruned model beside its dense one, as `multipruner evaluate run=FOLDER`.

        Args:
            tasks: names of lm-eval's tasks; `evaluation.tasks` of the command.
            texts: for perplexity per token; `evaluation.texts` of the command.
            options: the other options of the command.

        Returns:
            What `evaluation.json` says, which is in the run's folder by then.

        Raises:
            InputError: invalid input, with the message of the command.
        """

        def load() -> Job:
            from pipelines.evaluate.command import evaluate

            return evaluate

        short = {"evaluation.tasks": tasks, "evaluation.texts": texts}
        given = {name: list(value) for name, value in short.items() if value is not None}
        return run_command("evaluate", load, {"run": self.folder, **given}, options)

    def recover(self, **options: Any) -> Run:
        """Trains the pruned model for a short time, as `multipruner recover run=FOLDER`.

        Args:
            options: of the command, such as `recovery={"steps": 500}`; `output_dir` is a folder
                `recovery` in the run's by default.

        Returns:
            The same search with the trained model, in the folder of the recovery.

        Raises:
            InputError: invalid input, with the message of the command.
            Failed: training gained nothing.
        """

        if options.get("plan"):
            raise InputError(
                "plan: a recovery that is planned leaves nothing to open; use the command: "
                f"multipruner recover run={self.folder} plan=true"
            )

        def load() -> Job:
            from pipelines.recover.command import recover

            return recover

        run_command("recover", load, {"run": self.folder}, options)
        folder = options.get("output_dir") or self.folder / "recovery"
        return Run(Path(folder).expanduser().absolute())

    def export(self, format: str = "transformers", **options: Any) -> Path:  # noqa: A002
        """Writes the pruned model as a checkpoint, as `multipruner export run=FOLDER`.

        Args:
            format: `transformers`, `decilm` (vLLM) or `gguf` (llama.cpp).
            options: the other options of the command; `output_dir` is a folder named like the
                format in the run's folder by default.

        Returns:
            The folder that was written.

        Raises:
            InputError: invalid input, with the message of the command.
            ExportError: the folder does not compute what the search's model does.
        """

        def load() -> Job:
            from pipelines.export.command import export

            return export

        run_command("export", load, {"run": self.folder, "format": format}, options)
        return Path(options.get("output_dir") or self.folder / format).expanduser().absolute()

    def plot(self) -> Picture:
        """Perplexity against ratio, as the search drew it at its end.

        Raises:
            InputError: it has not ended.
        """
        from pipelines.runs.files import TRAJECTORY_PICTURE

        path = self.folder / TRAJECTORY_PICTURE
        if not path.exists():
            raise InputError(
                f"run: no {path.name} in {self.folder}: a search draws it at its end; go on with "
                "it, or plot its trajectory"
            )
        return Picture(path)

    @property
    def _saved(self) -> SavedRun:
        from pipelines.runs.saved_run import read_saved_run

        return read_saved_run(str(self.folder))

    @cached_property
    def _past(self) -> PastRun:
        from pipelines.runs.saved_run import read_run

        return read_run(str(self.folder))
