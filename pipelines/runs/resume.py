"""Settings as a run saves them, and as a resumed run takes them up again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from pipelines.config.groups import URLS
from pipelines.config.overrides import option_of
from pipelines.config.prune import PruneConfig
from pipelines.config.redaction import MASK, masked_url
from pipelines.config.target import targets_json
from pipelines.runs.files import CONFIG, RECOVERY, read_json_if_there, read_yaml
from pruning.errors import InputError


def resumed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The settings saved in the output folder, with what this command gives on top.

    Raises:
        InputError: the folder holds no run, or `experiment=` is given.
    """
    folder = Path(config.output_dir or "").expanduser()
    path = folder / CONFIG
    if not path.exists():
        raise InputError(
            f"output_dir: no {CONFIG} in {folder.absolute()}, so there is no run to resume; "
            "leave resume out to start one"
        )
    merged = config.copy()
    merged.merge_with(read_yaml(path, option="output_dir", fields=("model.path",)))
    given = [option_of(override) for override in overrides]
    if "experiment" in given:
        raise InputError(
            "experiment: cannot be given with resume=true, which takes the settings saved in "
            "output_dir"
        )
    for name in given:
        OmegaConf.update(merged, name, OmegaConf.select(config, name))
    for name in URLS:
        saved, own = OmegaConf.select(merged, name), OmegaConf.select(config, name)
        OmegaConf.update(merged, name, with_password(name, saved, own, of="the run in output_dir"))
    return merged


def with_password(name: str, saved: str, given: str, *, of: str) -> str:
    """The saved URL.

    A password is not saved: a URL that had one is the one that the command gives, or else the one
    in the variable of the environment for it.

    Args:
        name: the option.
        of: whose URL it is, for messages.

    Raises:
        InputError: neither is that URL.
    """
    if MASK not in saved:
        return saved
    variable = URLS[name].variable
    for url in (given, os.environ.get(variable, "")):
        if masked_url(url) == saved:
            return url
    raise InputError(
        f"{name}: {of} used {saved}, and passwords are not saved; set {variable} to the whole URL, "
        "or give it again, as on the first command"
    )


def saved_form(config: PruneConfig) -> DictConfig:
    """The configuration as it is saved and shown: paths absolute, so that a run can be resumed from
    anywhere; passwords in URLs masked.
    """
    saved = OmegaConf.structured(config)
    make_absolute(saved, config.path_options)
    for name in URLS:
        OmegaConf.update(saved, name, saved_url(OmegaConf.select(saved, name)))
    # what one command accepts, and what a result is compared with, are no part of the run
    saved.resume, saved.accept_other_arithmetic, saved.expected = False, False, None
    plain = OmegaConf.create(OmegaConf.to_container(saved))
    del plain.search.layout  # an old name, which `SearchConfig` has replaced
    if not config.search.is_lazy:
        del plain.search.selection, plain.search.lazy  # what scores all has nothing to say here
    if config.search.judged_by == "score":
        del plain.search.judged_by
    if not plain.calibration.sources:  # which only a mixture has
        del plain.calibration.sources
    if config.latency is None:
        del plain.latency, plain.measure_latency
    if config.load is None:
        del plain.memory
    if not config.recovery.wanted:
        del plain.recovery
    if not targets_json(config.search.asked):
        del plain.search.target  # of parameters alone `target_ratio` says everything
    return cast("DictConfig", plain)


def make_absolute(config: DictConfig, names: Sequence[str]) -> None:
    """Options that name what is there on this machine, in place."""
    for name in names:
        value = OmegaConf.select(config, name)
        if value and Path(value).expanduser().exists():
            OmegaConf.update(config, name, str(Path(value).expanduser().absolute()))


def saved_url(url: str) -> str:
    """A URL as it is saved: files absolute, passwords masked."""
    masked = masked_url(url)
    scheme, separator, file = masked.partition("sqlite:///")
    in_file = separator and not scheme and file and not file.startswith(":")
    return f"sqlite:///{Path(file).absolute()}" if in_file else masked


_SAVED = ("tracking", "store")
"""Groups that an evaluation of a search takes from it, so that its numbers are on the search's
page, and its scores with the search's.
"""


def with_settings_of_run(
    config: DictConfig, given: Sequence[str], groups: Sequence[str] = _SAVED
) -> DictConfig:
    """With `run=`: these groups as of that search, unless the command gives others. A recovery
    says nothing of what its search alone has, such as the store.

    Raises:
        InputError: a URL had a password, which is not saved, and is not given again.
    """
    path = Path(config.run or "").expanduser() / CONFIG
    if config.run is None or not path.exists():
        return config
    merged, saved = config.copy(), read_yaml(path, option="run")
    description = read_json_if_there(path.parent / RECOVERY, option="run", fields=("run",))
    search = description["run"] if description is not None else None
    if search is not None and (path.parent / search / CONFIG).exists():
        of_search = read_yaml(path.parent / search / CONFIG, option="run")
        saved = cast("DictConfig", OmegaConf.merge(of_search, saved))
    for group in groups:
        if (
            not any(name.partition(".")[0] == group for name in given)
            and OmegaConf.select(saved, group) is not None
        ):
            OmegaConf.update(merged, group, OmegaConf.merge(merged[group], saved[group]))
    for name in (url for url in URLS if url.partition(".")[0] in groups):
        url, own = OmegaConf.select(merged, name), OmegaConf.select(config, name)
        OmegaConf.update(merged, name, with_password(name, url, own, of=f"the search {config.run}"))
    return merged
