"""From a command line to a job: every misspelt or mistyped option at once, and a user's mistake as
a message instead of a traceback.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.cli.commands import resuming
from pipelines.cli.console import own_log, stop
from pipelines.cli.help import FLAGS, print_help
from pipelines.cli.notice import Notice
from pipelines.cli.signals import Interruption
from pipelines.config.groups import URLS
from pipelines.config.overrides import (
    CONF,
    as_override,
    asks_for_multirun,
    composition_error,
    flag_problems,
    hydra_flags,
    option_of,
    override_problems,
    quoted,
    spelt_out,
    with_quoted_path,
)
from pipelines.config.redaction import masked_url
from pipelines.config.schemas import register
from pipelines.errors import Failed, StoreUnavailable
from pruning.errors import ExportError, InputError, ScoringError
from workers.pool.faults import WorkersLost

_RESUMED = ("prune", "sweep")
"""Commands that take `resume=true`."""

Job = Callable[[DictConfig, Sequence[str]], object]
"""Takes the composed configuration and the overrides that the user gave."""


def launch(
    config_name: str,
    load: Callable[[], Job],
    prepare: Callable[[Sequence[str]], list[str]] = list,
) -> None:
    """Runs a job under Hydra.

    Exit status: 0 done, 2 invalid input (fix and rerun), 1 runtime failure, 130 and 143 stopped by
    Ctrl-C and SIGTERM.

    Args:
        load: imports the job. Help and misspelt options need not wait for that.
        prepare: turns the words of the command line into ones that Hydra understands.
    """
    if FLAGS & set(sys.argv[1:]):
        print_help(config_name)
        return
    try:
        arguments = sys.argv[1:] = _arguments(config_name, sys.argv[1:], prepare)
        if any(word.startswith("-") for word in arguments):
            _under_hydra(config_name, load, arguments)
            return
        with _composed(config_name, arguments) as config:
            _run(config_name, _imported(load), config, _of_command(arguments))
    except InputError as error:
        stop(str(error), 2)


def call(
    config_name: str,
    load: Callable[[], Job],
    words: Sequence[str],
    prepare: Callable[[Sequence[str]], list[str]] = list,
) -> Any:
    """Runs a job for a program, as `launch` does with these words, and returns what the job does.

    Errors come as they are instead of ending the process. Log handlers, signals and Hydra are
    afterwards as they were, but for the schemas in its ConfigStore; off the main thread, signals
    stay with the program.

    Raises:
        InputError: invalid input, with the message of the command.
        ExportError, Failed, ScoringError, StoreUnavailable, WorkersLost, OSError: as of the job.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; what was computed is kept.
    """
    with _own_hydra():
        arguments = _arguments(config_name, words, prepare)
        flags = [word for word in arguments if word.startswith("-")]
        if flags:
            raise InputError(f"{', '.join(flags)}: for the command line; give options alone")
        with own_log(), _composed(config_name, arguments) as config, Interruption():
            try:
                return load()(config, _of_command(arguments))
            except OmegaConfBaseException as error:
                raise InputError(_unresolved(error)) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """A program may have set Hydra up for itself."""
    hydra_before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    version, job = VersionBase.instance().getbase(), JobRuntime.instance().get("name")
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra_before  # Hydra puts copies of the instance there
        VersionBase.instance().version_base = version
        JobRuntime.instance().set("name", job)


def _arguments(
    config_name: str, words: Sequence[str], prepare: Callable[[Sequence[str]], list[str]]
) -> list[str]:
    """The words as Hydra understands them.

    Raises:
        InputError: flags, or values of a group of files, that mean nothing here.
    """
    register()
    multirun = asks_for_multirun(words)
    arguments = prepare([with_quoted_path(spelt_out(word), multirun=multirun) for word in words])
    problems = flag_problems(config_name, arguments)
    if problems:
        raise InputError("\n".join(problems))
    _refuse_values_of_groups(config_name, arguments)
    return arguments


def _of_command(arguments: Sequence[str]) -> list[str]:
    """Without what is for Hydra itself."""
    return [word for word in arguments if not word.startswith(("hydra.", "hydra/"))]


@contextmanager
def freeze_gc() -> Iterator[None]:
    """For imports: the garbage collector rests, and never looks at what they made.

    torch and transformers make millions of objects, and nearly all of them stay. Looking through
    them as they come would be a third of what a short command takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _refuse_values_of_groups(config_name: str, arguments: Sequence[str]) -> None:
    """`experiment=[a,b]` would silently lay one file over the other, and of `search=null` Hydra
    says neither the name nor what it takes.
    """
    said = {word: problem for word in arguments if (problem := _problem_of_group(word))}
    if said:
        others = [
            word
            for word in arguments
            if "=" in word and word not in said and not word.startswith("-")
        ]
        raise InputError("\n".join([*said.values(), *override_problems(config_name, others)]))


def _problem_of_group(word: str) -> str:
    """Of a group of files and a value that names none of them."""
    group = option_of(word)
    if "=" not in word or not (CONF / group).is_dir():
        return ""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # composing explains it
        return ""
    if isinstance(value := override.value(), list):
        return f"{word}: takes one file of conf/{group}; a list is for multipruner sweep"
    if override.is_sweep_override() or isinstance(value, str | dict):
        return ""
    return f"{word}: takes the name of a file of conf/{group}; give one, or leave it out"


@contextmanager
def _composed(config_name: str, arguments: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration, with Hydra set up for jobs that compose more.

    What Hydra's own start does more is to compose twice again and to set up logs and folders, which
    these jobs have off.

    Raises:
        InputError: with every problem of the words.
    """
    with initialize_config_dir(str(CONF), version_base=None):
        try:
            config = compose(config_name, overrides=list(arguments))
        except (HydraException, OmegaConfBaseException):
            config = None
        if config is not None:
            yield config
            return
    raise InputError("\n".join(override_problems(config_name, arguments)))


def _under_hydra(config_name: str, load: Callable[[], Job], arguments: Sequence[str]) -> None:
    """With flags, which are Hydra's: --cfg, --multirun, --hydra-help."""
    _refuse_passwords(arguments)
    flags = hydra_flags(arguments)
    if flags.hydra_help:
        sys.argv[1:] = ["--hydra-help"]  # this page knows no option of ours
    else:
        words = list(flags.overrides)
        if flags.multirun:  # several values are for Hydra to take apart
            words = [word for word in words if "=" not in word and not word.startswith("~")]
        problems = override_problems(config_name, words)
        if flags.resolve and not problems:
            problems = _resolved_passwords(config_name, words)
        if problems:
            stop("\n".join(problems), 2)

    @hydra.main(version_base=None, config_path=str(CONF), config_name=config_name)
    def hydrated(config: DictConfig) -> None:
        _run(config_name, _imported(load), config, list(HydraConfig.get().overrides.task))

    hydrated()


def _refuse_passwords(arguments: Sequence[str]) -> None:
    """Hydra prints what it is given, and --multirun writes it to a file that everybody may read."""
    problems = [
        f"{option_of(word)}: a URL with a password; Hydra's flags print what is given, or write it "
        f"to a file; leave it out, set {URLS[option_of(word)].variable}, and give "
        f"{URLS[option_of(word)].choice}"
        for word in arguments
        if option_of(word) in URLS and masked_url(word.partition("=")[2]) != word.partition("=")[2]
    ]
    if problems:
        stop("\n".join(problems), 2)


def _resolved_passwords(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Hydra prints what it looks up for --resolve, in the environment too."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(config_name, overrides=list(overrides))
    found = []
    for name in URLS:
        with suppress(OmegaConfBaseException):  # which Hydra will explain
            url = str(OmegaConf.select(config, name))
            if masked_url(url) != url:
                found.append(
                    f"--resolve: {name} is a URL with a password, from the environment, and would "
                    "be printed; leave --resolve out, or give another URL for it"
                )
    return found


def _imported(load: Callable[[], Job]) -> Job:
    with freeze_gc():
        return load()


def _run(config_name: str, job: Job, config: DictConfig, overrides: Sequence[str]) -> None:
    interruption = Interruption()
    try:
        notice = Notice(config_name, [OmegaConf.select(config, name) or "" for name in URLS])
    except InputError as error:
        stop(str(error), 2)
    try:
        with interruption:
            found = job(config, overrides)
    except KeyboardInterrupt as error:
        said = f"{interruption}{_kept(config_name, config, error)}"
        with notice.sent_after("stopped", said):
            stop(said, interruption.status)
    except Exception as error:
        said, status = _problem(config_name, config, error)
        with notice.sent_after("failed", said):
            if status is None:
                raise
            stop(said, status)
    notice.send("done", "", found)


def _problem(
    config_name: str, config: DictConfig, error: Exception
) -> tuple[str, Literal[1, 2] | None]:
    """What to tell of an error, and the exit status; None: nobody foresaw it."""
    match error:
        case InputError():
            return str(error), 2
        case OmegaConfBaseException():  # `${...}` is looked up only when it is read
            return _unresolved(error), 2
        case ExportError() | Failed():
            return str(error), 1
        # OSError: a full or vanished disk
        case ScoringError() | StoreUnavailable() | WorkersLost() | OSError():
            return f"{error}{_kept(config_name, config, error)}", 1
    return f"{type(error).__name__}: {error}", None


def _unresolved(error: OmegaConfBaseException) -> str:
    said = composition_error(error)
    return f"{error.full_key}: {said}" if error.full_key else said


def _kept(config_name: str, config: DictConfig, error: BaseException) -> str:
    """What there is of a job that did not end, and how to go on with it.

    Passwords are not saved: what is in the environment is read from there again, and what was on
    the command line belongs there.

    The folder is in the note of `pipelines.runs.folder.RunFolder`, the last one's being that of the
    whole job.
    """
    notes = [note for note in getattr(error, "__notes__", []) if "output_dir=" in note]
    if not notes:
        return ""
    found, _, path = notes[-1].partition("output_dir=")
    resumed = config_name in _RESUMED and not found
    urls = {name: OmegaConf.select(config, name) or "" for name in URLS}
    variables = "".join(
        f"{URLS[name].variable}={shlex.quote(masked_url(url))} "
        for name, url in urls.items()
        if masked_url(url) != url != os.environ.get(URLS[name].variable)
    )
    again = (
        variables + resuming(config_name, path)
        if resumed
        else f"the same command with {shlex.quote(as_override('output_dir', path))}"
    )
    fill_in = ", with the password for ***" if variables and resumed else ""
    return f"\n  Everything computed so far is kept. To go on{fill_in}: {again}"


def listed_in(option: str) -> Callable[[Sequence[str]], list[str]]:
    """A `prepare` that takes `A B x=1` for `x=1 option=[A,B]`: words that set nothing are items of
    that list.
    """

    def gathered(arguments: Sequence[str]) -> list[str]:
        free = [
            word
            for word in arguments
            if not word.startswith("-") and ("=" not in word or Path(word).expanduser().is_dir())
        ]
        if not free:
            return list(arguments)
        if any(word.startswith(f"{option}=") for word in arguments):
            stop(
                f"{option}: given twice, as {option}= and as {', '.join(free)}; give all in one "
                "place",
                2,
            )
        return [
            *(word for word in arguments if word not in free),
            f"{option}=[{','.join(map(quoted, free))}]",
        ]

    return gathered
