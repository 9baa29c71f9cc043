"""The commands that make something, and what opens what they made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multipruner.points import Sweep
from multipruner.run import Run
from multipruner.words import of_search, run_command
from pruning.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipelines.cli.launch import Job


def prune(
    model: str | Path | PreTrainedModel | None = None,
    /,
    *,
    target: float | Mapping[str, float] | None = None,
    text: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Run:
    """Prunes a model, as `multipruner prune`, or goes on with a search that was stopped.

    Args:
        model: a folder with safetensors, a hub id, or a `.gguf`; `model=` of the command. Or a
            loaded model, of which a copy is written first: `dense_model/NAME` in the output folder.
        target: removed / all parameters, 0..1, `search.target_ratio` of the command; or shares of
            several costs, `{"flops": 0.1, "kv_cache": 0.25}` for `search.target.flops` and so on.
        text: a file of text to calibrate on; `calibration=text calibration.path=FILE`.
        tokenizer: of a loaded model, where something is to read text.
        options: the other options of the command: `search="allocation"`, `output_dir="DIR"`,
            `resume=True`; those with a dot in a mapping of their group, `model={"dtype":
            "float32"}`, or as `**{"model.dtype": "float32"}`.

    Raises:
        InputError: invalid input, with the message of the command and before anything expensive
            starts.
        Failed, ScoringError, ExportError, StoreUnavailable, WorkersLost, OSError: something went
            wrong on the way; what was computed is kept, and the same call goes on with it if
            `output_dir` is the same.
    """

    def load() -> Job:
        from pipelines.prune.command import prune

        return partial(prune, dense=dense)

    dense, of_model = None, model
    if not isinstance(model, str | Path | None):
        from pipelines.prune.loaded import DenseModel

        dense = DenseModel.of(model, tokenizer, options.get("output_dir"))
        of_model, options = dense.copy, options | {"output_dir": dense.output_dir}
    elif tokenizer is not None:
        raise InputError(
            "tokenizer: given without a loaded model; that of model.path is read from there"
        )
    summary = run_command("prune", load, of_search(of_model, target, text), options)
    return Run(Path(summary["output_dir"]))


def sweep(
    model: str | Path | Sequence[str | Path] | None = None,
    /,
    *,
    target: float | Sequence[float] | Mapping[str, float | Sequence[float]] | None = None,
    text: str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> Sweep:
    """Many searches as one experiment, as `multipruner sweep`: one for each combination of values.

    Args:
        model, target, text, options: as `prune` takes them; a list is several values, as is each
            of `grid={"search.target_ratio": [0.1, 0.2]}`.

    Raises:
        InputError: invalid input, in any point, found before the first one starts.
        Failed: some points did; the others are done, and `open` has them.
        StoreUnavailable, OSError: as for `prune`.
    """

    def load() -> Job:
        from pipelines.sweep.command import sweep

        return sweep

    from pipelines.config.grid import as_grid

    given = of_search(model, target, text)
    report = run_command("sweep", load, given, options, prepare=as_grid)
    return Sweep(Path(report["output_dir"]))


def open(folder: str | Path) -> Run | Sweep:  # noqa: A001 - multipruner.open, as gzip.open
    """What a search, a recovery or a sweep left in its folder. Reads only: `prune(resume=True,
    ...)` goes on.

    Raises:
        InputError: it is none, something in it is missing or damaged, or it is a sweep of which
            no point has ended.
    """
    from pipelines.runs.files import RUN, SWEEP, read_json_if_there
    from pipelines.runs.saved_run import read_recovery, read_saved_run

    path = Path(folder).expanduser().absolute()
    if (path / SWEEP).exists():
        return Sweep(path)
    if "grid" in (read_json_if_there(path / RUN, option="sweep") or {}):
        raise InputError(
            f"sweep: no {SWEEP} in {path} yet: no point of this sweep has ended; to go on with it: "
            f"multipruner.sweep(resume=True, output_dir={str(path)!r})"
        )
    if read_recovery(str(path)) is None:
        read_saved_run(str(path))
    return Run(path)
