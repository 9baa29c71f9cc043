"""A call leaves the program around it as it was, whether it works or not."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

import multipruner
from pipelines.cli.launch import Job, call
from tests.multipruner.conftest import Prune
from tests.pipelines.command import run_command

DEFAULTS = (
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
)
"""Variables that are set, where they are not, before MLflow is imported, which reads them then."""

BAD: list[dict[str, Any]] = [
    {"serach": "allocation"},
    {"search": "alloc"},
    {"search": {"sed": 1}},
    {"search.seed": "x", "calibration.batch_size": 0},
    {"search.target_ratio": [0.1, 0.2]},
    {"search": ["multipruner", "shortgpt"]},
    {"search": None, "store": None, "cluster": 1, "serach": 1},
    {"search.target_ratio": 7, "calibration.batch_size": 0},
    {"model.path": "/nowhere/at all"},
    {"output_dir": "${oc.env:NOT_SET_ANYWHERE}/x", "model": "/nowhere"},
    {"resume": True},
    {"store": "postgresql"},
]


class Handler(logging.Handler):
    """Counts what it gets, and whether it was closed."""

    records, closed = 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records += 1

    def close(self) -> None:
        self.closed += 1
        super().close()


def state() -> dict[str, Any]:
    """What a call must not change."""
    root = logging.getLogger()
    return {
        "handlers": root.handlers[:],
        "levels": [logging.getLogger(name).level for name in ("", "urllib3", "matplotlib")],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hydra": GlobalHydra.instance().hydra,
        "hydra_base": VersionBase.instance().getbase(),
        "hydra_job": JobRuntime.instance().get("name"),
        "argv": sys.argv[:],
        "cwd": Path.cwd(),
        "threads": torch.get_num_threads(),
        "backend": matplotlib.get_backend(auto_select=False),
        "environment": {name: value for name, value in os.environ.items() if name not in DEFAULTS},
    }


@pytest.fixture
def program() -> Iterator[Handler]:
    """A program with a log handler, a signal handler and a number of threads of its own."""
    handler, root, threads = Handler(), logging.getLogger(), torch.get_num_threads()
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: None)
    torch.set_num_threads(2)
    yield handler
    root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    torch.set_num_threads(threads)


def test_a_search_leaves_the_program_as_it_was_and_its_log_lines_alone(
    program: Handler, prune: Prune
) -> None:
    before = state()
    prune()
    assert state() == before
    assert (program.records, program.closed) == (0, 0)
    logging.getLogger("mine").error("still heard")
    assert program.records == 1


@pytest.mark.parametrize("bad", BAD, ids=lambda given: ",".join(given))
def test_bad_input_is_an_error_with_the_words_of_the_command(
    program: Handler,
    bad: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MULTIPRUNER_STORE_URL", raising=False)
    before = state()
    with pytest.raises(multipruner.InputError) as raised:
        multipruner.prune(**bad)
    assert state() == before
    assert program.closed == 0
    assert capsys.readouterr().out == ""
    from multipruner.words import words_of

    command = run_command("prune", *words_of(bad))
    assert command.status == 2
    said = [line if line[0] == " " else f"error: {line}" for line in str(raised.value).splitlines()]
    assert command.output.splitlines() == said


def test_a_call_works_after_one_that_failed_and_in_another_thread(prune: Prune) -> None:
    """As a notebook's cells are run: one after the other, in a thread of the kernel."""
    with pytest.raises(multipruner.InputError):
        prune(serach="allocation")
    runs: list[multipruner.Run] = []

    def search(folder: str) -> None:
        runs.append(prune(output_dir=folder))

    for folder in ("first", "second"):
        thread = threading.Thread(target=search, args=(folder,))
        thread.start()
        thread.join()
    assert [run.folder.name for run in runs] == ["first", "second"]
    assert runs[0].shape == runs[1].shape


def test_a_program_that_uses_hydra_itself_goes_on_with_its_own(
    prune: Prune, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path / "mine"), job_name="mine", version_base="1.2"):
        before = state()
        prune()
        assert state() == before
        assert compose("mine") == {"a": 1}
        assert compose("mine", return_hydra_config=True).hydra.job.name == "mine"


def test_a_reference_that_leads_nowhere_is_bad_input_too() -> None:
    """It is looked up only when it is read."""

    def load() -> Job:
        return lambda config, _: config.output_dir

    with pytest.raises(multipruner.InputError, match=r"^output_dir: .*'NOT_SET_ANYWHERE' not"):
        call("prune", load, ["output_dir=${oc.env:NOT_SET_ANYWHERE}"])


def test_flags_are_for_the_command_line() -> None:
    with pytest.raises(multipruner.InputError, match="--cfg=job: for the command line"):
        multipruner.prune("model", **{"--cfg": "job"})  # type: ignore[arg-type]
