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


@pytest.mark.parametrize("scope", ["job", "all"])
def test_a_password_in_the_environment_is_not_looked_up(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    monkeypatch.setenv("MULTIPRUNER_STORE_URL", STORE)
    words = ("--cfg", scope, "--resolve", "store=postgresql")
    outcome = cli("prune", *words, folder=None)
    assert outcome.status == 2
    [error] = outcome.errors
    assert error.startswith("error: --resolve: store.url is a URL with a password")
    assert SECRET not in outcome.output
    monkeypatch.setenv("MULTIPRUNER_STORE_URL", "postgresql://db/scores")
    shown = cli("prune", *words, folder=None)
    assert shown.status == 0, shown.output
    assert "url: postgresql://db/scores" in shown.output


@pytest.mark.parametrize("flag", ["--multirun", "--multi", "-m"])
def test_every_form_of_a_flag_is_the_flag(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """Several values, of a path too, are points of Hydra's sweep."""
    jobs = []
    monkeypatch.setattr(
        "pipelines.prune.command.prune",
        lambda config, _: jobs.append((config.search.target_ratio, config.output_dir)),
    )
    words = ("search.target_ratio=0.1,0.2", "output_dir=a,b", f"hydra.sweep.dir={tmp_path}/multi")
    outcome = cli("prune", flag, "model.path=m", *words)
    assert outcome.status == 0, outcome.output
    assert jobs == [(ratio, folder) for ratio in (0.1, 0.2) for folder in ("a", "b")]


@pytest.mark.parametrize("flag", ["--hydra-help", "--hydra-h"])
def test_hydras_manual_has_no_options_of_ours(cli: Cli, flag: str) -> None:
    outcome = cli("plan", "model.path=m", flag, folder=None)
    assert outcome.status == 0, outcome.output
    assert "--hydra-help" in outcome.output


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
