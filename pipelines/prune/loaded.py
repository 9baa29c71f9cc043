"""A model that a program has in memory, for a search: written into the output folder first, where
evaluators, a resumed run, evaluation and export find it like any other.
"""

from __future__ import annotations

import filecmp
import json
import logging
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipelines.config.prune import PruneConfig
from pipelines.runs.files import DENSE, LOCK, RUN
from pipelines.runs.folder import RunFolder, dated_folder
from pruning import disk
from pruning.calibration.spec import MixtureSpec
from pruning.errors import InputError
from pruning.models.display_name import display_name
from pruning.models.saved_copy import problem_of, save_copy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class DenseModel:
    """A loaded model, its tokenizer, and the output folder of the search that gets a copy."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    output_dir: Path

    @classmethod
    def of(cls, model: object, tokenizer: object, output_dir: str | Path | None) -> Self:
        """Checks what was given.

        Args:
            output_dir: None for a dated one.

        Raises:
            InputError: a folder would not open as that model, or the tokenizer is none.
        """
        problem = problem_of(model)
        problems = [f"model: {problem}"] if problem else []
        if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
            problems.append(
                f"tokenizer: a value of type {type(tokenizer).__name__}; give a tokenizer of "
                "transformers"
            )
        if problems:
            raise InputError("\n".join(problems))
        assert isinstance(model, PreTrainedModel)
        assert isinstance(tokenizer, PreTrainedTokenizerBase | None)
        folder = Path(output_dir).expanduser().absolute() if output_dir else dated_folder()
        return cls(model, tokenizer, folder)

    @property
    def copy(self) -> Path:
        """Where its copy is, or will be: named like the model, for titles and tables."""
        there = sorted((self.output_dir / DENSE).glob("[!.]*"))
        if there:
            return there[0]
        origin = display_name(str(getattr(self.model.config, "_name_or_path", "")))
        name = re.sub(r"[^A-Za-z0-9._-]", "_", origin).strip(".")
        return self.output_dir / DENSE / (name or self.model.config.model_type)

    def write(self, config: PruneConfig) -> bool:
        """Writes the copy, whole or not at all; one that is there is compared instead.

        Returns:
            Whether it was written now.

        Raises:
            InputError: the search needs a tokenizer and none is given, or the folder has another
                model, or something else.
        """
        there = self.copy.exists()
        if self.tokenizer is None and not there and (use := _use_of_text(config)):
            raise InputError(
                f"tokenizer: missing, and {use} needs one; give that of the model, or "
                "calibration=tokens"
            )
        with RunFolder(str(self.output_dir)) as folder:
            folder.require_own()
            if not there and (folder.path / RUN).exists():
                raise InputError(
                    f"output_dir: {folder.path} belongs to a run of another model, which was not "
                    "given as a loaded one; give another folder"
                )
            with tempfile.TemporaryDirectory(dir=folder.path, prefix=".") as scratch:
                written = Path(scratch) / self.copy.name
                log.info("writing a copy of the loaded model: %s", self.copy)
                save_copy(self.model, self.tokenizer, written)
                if there:
                    self._require_same(written)
                else:
                    self.copy.parent.mkdir(exist_ok=True)
                    disk.rename(written, self.copy)
        return not there

    def discard(self) -> None:
        """Takes back a copy of which no search was begun, and the folder if that was all in it."""
        if (self.output_dir / RUN).exists():
            return
        shutil.rmtree(self.output_dir / DENSE, ignore_errors=True)
        (self.output_dir / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.output_dir.rmdir()

    def _require_same(self, written: Path) -> None:
        """Whether what was written now is the copy: its weights to the byte, its configuration but
        for the version that wrote it, and the tokens. What else a tokenizer's files say changes as
        it is used.
        """
        weights = sorted(path.name for path in written.glob("*.safetensors"))
        differing = [
            name
            for name in weights
            if not (self.copy / name).exists()
            or not filecmp.cmp(written / name, self.copy / name, shallow=False)
        ]
        if _configuration(written) != _configuration(self.copy):
            differing.append("config.json")
        if self.tokenizer is not None and _tokens(self.copy) != self.tokenizer.get_vocab():
            differing.append("the tokenizer")
        if differing:
            raise InputError(
                f"output_dir: {self.copy} is a copy of another model than the one that was given "
                f"(different: {', '.join(differing)}); give another output_dir, or that model"
            )


def _configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name != "transformers_version"}


def _tokens(folder: Path) -> dict[str, int] | None:
    """The tokens of a copy by text; None if it has no tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def _use_of_text(config: PruneConfig) -> str | None:
    """What tokenizes text, if anything does."""
    spec, evaluation = config.calibration.spec(), config.evaluation
    parts = spec.sources if isinstance(spec, MixtureSpec) else (spec,)
    if any(part.source != "tokens" for part in parts):
        return f"calibration={config.calibration.source}"
    return "evaluation" if evaluation.tasks or evaluation.texts else None
