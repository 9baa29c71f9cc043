"""A sweep's settings as its folder saves them, and taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipelines.config.grid import plain_grid, written
from pipelines.config.overrides import composed, option_of, quoted
from pipelines.config.prune import PruneConfig
from pipelines.config.sweep import SweepConfig
from pipelines.prune.job import PruneJob
from pipelines.runs.files import RUN, read_json_if_there
from pipelines.runs.resume import saved_url, with_password
from pruning.errors import InputError

OWN_OPTIONS = ("output_dir", "resume", "grid")


def resumed_sweep(
    raw: DictConfig, given: Sequence[str]
) -> tuple[SweepConfig, list[str], dict[str, Any]]:
    """The settings saved in the folder, with what this command gives on top.

    Raises:
        InputError: the folder holds no sweep, or a password, which is not saved, is not given
            again.
    """
    if not raw.output_dir:
        raise InputError("output_dir: missing; resume=true goes on with the sweep in that folder")
    saved = Path(raw.output_dir).expanduser() / RUN
    record = read_json_if_there(saved, option="output_dir") or {}
    if "grid" not in record:
        raise InputError(
            f"output_dir: no sweep in {saved.parent.absolute()} to resume; leave resume out to "
            "start one"
        )
    # store=postgresql replaces every store.* that was saved.
    replaced = {option_of(override) for override in given}
    overrides = [
        *(
            override
            for override in record["overrides"]
            if option_of(override).partition(".")[0] not in replaced
        ),
        *given,
    ]
    config = SweepConfig.of_grid(composed("sweep", overrides))
    for name, url in _urls(config).items():
        whole = with_password(name, url, "", of="the sweep in output_dir")
        if whole != url:
            overrides.append(f"{name}={quoted(whole)}")
    return (
        SweepConfig.of_grid(composed("sweep", overrides)),
        overrides,
        record["grid"] | plain_grid(raw.grid),
    )


def _urls(config: PruneConfig) -> dict[str, str]:
    return {"store.url": config.store.url, "tracking.uri": config.tracking.uri}


def saved_overrides(given: Sequence[str], job: PruneJob) -> list[str]:
    """As `pipelines.runs.resume.saved_form`: paths absolute, those of files that nobody named too;
    passwords masked.
    """
    paths = job.config.path_options
    options = OmegaConf.structured(job.config)
    values = {name: _absolute(OmegaConf.select(options, name)) for name in paths}
    sources = _saved("calibration.sources", OmegaConf.to_container(options.calibration.sources))
    urls = {name: saved_url(url) for name, url in _urls(job.config).items()}
    values |= urls
    saved = {
        name: f"{name}={quoted(url)}" for name, url in urls.items() if url.startswith("sqlite:")
    }
    for override in given:
        name = option_of(override)
        saved.pop(name, None)  # what is given later counts
        saved[name] = f"{name}={quoted(values[name])}" if values.get(name) is not None else override
        if name == "calibration.sources":
            saved[name] = f"{name}={written(sources)}"
    return list(saved.values())


def saved_grid(grid: Mapping[str, Any]) -> dict[str, Any]:
    """The grid with absolute paths, so that a sweep can be resumed from anywhere."""
    return {name: [_saved(name, value) for value in values] for name, values in grid.items()}


def _saved(name: str, value: Any) -> Any:
    if name == "calibration.sources":
        return [
            {**each, "path": _absolute(each["path"])} if each.get("path") else each
            for each in value
        ]
    is_path = name.startswith(("model.", "calibration.")) and name.endswith(".path")
    return _absolute(value) if is_path else value


def _absolute(value: Any) -> Any:
    return (
        str(Path(value).expanduser().absolute())
        if isinstance(value, str) and Path(value).expanduser().exists()
        else value
    )
