"""Every file of conf/ composes into a checked configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.grid import points_of
from pipelines.config.overrides import CONF, option_names
from pipelines.config.prune import PruneConfig
from pipelines.config.schemas import register
from pipelines.config.sweep import SweepConfig
from tests.conftest import ROOT

FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
NEEDS_FILE = {"text", "tokens"}
ENVIRONMENT = {
    "MULTIPRUNER_STORE_URL": "postgresql://me@db/scores",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
}
"""Where a password could be in a URL, it comes from here."""


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_choice_composes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    register()
    needed = ["calibration.path=FILE"] if file.stem in NEEDS_FILE else []
    with initialize_config_dir(str(CONF), version_base=None):
        if file.parent.name == "evaluation" or file == Path("model/none.yaml"):
            raw = compose(
                "evaluate",
                overrides=[f"{file.parent}={file.stem}", "run=DIR", "evaluation.cost=true"],
            )
            assert EvaluateConfig.of(raw, []).problems([]) == []
            return
        config = PruneConfig.of(compose("prune", overrides=[f"{file.parent}={file.stem}", *needed]))
    assert config.problems() == []


def test_experiments_say_how_to_run_them() -> None:
    for file in (CONF / "experiment").glob("**/*.yaml"):
        name = file.relative_to(CONF / "experiment").with_suffix("").as_posix()
        assert re.match(
            r"# @package _global_\n# python -m pipelines\.(prune|sweep|reproduce) "
            rf"experiment={name}\s",
            file.read_text(),
        ), name


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "experiment/sweep").glob("*.yaml")])
def test_sweeps_are_points_that_compose(name: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        raw = compose("sweep", overrides=[f"experiment=sweep/{name}"])
        points = points_of(OmegaConf.to_container(raw.grid))  # type: ignore[arg-type]
        configs = [
            SweepConfig.point(
                compose("sweep", overrides=[f"experiment=sweep/{name}", *point.overrides])
            )
            for point in points
        ]
    assert len(points) > 1
    assert len({str(config.search) + str(config.calibration) for config in configs}) == len(points)


def test_the_readme_names_every_option() -> None:
    """And names none that does not exist."""
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        names = {
            name
            for name in option_names(compose("prune"))
            if "." in name or name in ("output_dir", "resume")
        }
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in names if f"`{name}`" not in readme]
    assert missing == []
    mentioned = set(
        re.findall(r"`((?:model|calibration|search|cluster|tracking|store)\.[a-z_0-9]+)`", readme)
    )
    assert mentioned <= names
