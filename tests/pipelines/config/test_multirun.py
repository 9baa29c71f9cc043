"""What Hydra's own flags print and write, which is not ours to mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.conftest import Cli

SECRET = "s3cr3t-W0rd"
STORE = f"postgresql://me:{SECRET}@db/scores"


@pytest.mark.parametrize("flags", [["--multirun"], ["-m"], ["--multi"], ["--cfg", "job"]])
@pytest.mark.parametrize(
    ("word", "says"),
    [
        (f"store.url={STORE}", "set MULTIPRUNER_STORE_URL, and give store=postgresql"),
        (f"+store.url='{STORE}'", "set MULTIPRUNER_STORE_URL, and give store=postgresql"),
        (f"store.url={STORE},sqlite:///a.db", "set MULTIPRUNER_STORE_URL"),
        (f"tracking.uri=https://me:{SECRET}@ml", "set MLFLOW_TRACKING_URI, and give tracking=serv"),
    ],
)
def test_a_password_is_refused(
    cli: Cli, tmp_path: Path, flags: list[str], word: str, says: str
) -> None:
    outcome = cli("prune", *flags, word, f"hydra.sweep.dir={tmp_path}/multirun", folder=None)
    assert outcome.status == 2
    [error] = outcome.errors
    assert says in error
    assert SECRET not in outcome.output
    assert not list(tmp_path.rglob("*.yaml")), "nothing is written"


def test_a_password_in_the_environment_is_in_no_file(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 0.1)
    outcome = cli(
        "prune",
        "--multirun",
        *(word for word in arguments if not word.startswith(("tracking.uri", "search.target"))),
        "tracking=server",
        "search.target_ratio=0.1,0.05",
        f"output_dir={tmp_path}/multi/${{search.target_ratio}}",
        f"hydra.sweep.dir={tmp_path}/multirun",
        folder=None,
    )
    assert outcome.status == 0, outcome.output
    assert SECRET not in outcome.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "multirun/multirun.yaml" in written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
