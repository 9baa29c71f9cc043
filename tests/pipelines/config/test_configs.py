"""Every file of conf/ composes into a checked configuration."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.export import ExportConfig
from pipelines.config.grid import points_of
from pipelines.config.groups import URLS
from pipelines.config.options import COMMANDS
from pipelines.config.overrides import CONF
from pipelines.config.prune import PruneConfig
from pipelines.config.recover import RecoverConfig
from pipelines.config.schemas import register
from pipelines.config.sweep import SweepConfig
from pruning.models.shards import MAX_SHARD_BYTES

FILES = sorted(
    path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.parent.name != "base"
)
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
        if file.parent.name == "recovery" and file.stem != "none":
            raw = compose("recover", overrides=[f"{file.parent}={file.stem}", "run=DIR"])
            assert RecoverConfig.of(raw, []).problems([]) == []
        config = PruneConfig.of(compose("prune", overrides=[f"{file.parent}={file.stem}", *needed]))
    assert config.problems() == []


def test_the_variables_that_messages_name_are_those_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register()
    for name, place in URLS.items():
        monkeypatch.setenv(place.variable, "postgresql://me@from.the.environment/x")
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose("prune", overrides=[place.choice])
        assert OmegaConf.select(config, name) == "postgresql://me@from.the.environment/x"


@pytest.mark.parametrize("command", COMMANDS)
def test_hydra_only_composes(command: str) -> None:
    """Without logs, folders and a working directory of its own: runs have their own."""
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        hydra = compose(command, return_hydra_config=True).hydra
    assert hydra.job_logging.root is None
    assert hydra.hydra_logging.root is None
    assert hydra.output_subdir is None
    assert (hydra.run.dir, hydra.sweep.dir, hydra.job.chdir) == (".", "outputs/multirun", False)


def test_files_of_groups_and_experiments_lie_over_what_the_commands_share() -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        given = ["search=shortgpt", "calibration=alpaca", "experiment=multipruner/llama2_7b_22"]
        both = [compose(command, overrides=given) for command in ("prune", "reproduce")]
        cluster = compose("prune", overrides=["evaluation=full", "cluster=ray"])
    for config in both:
        assert config.search.strategy == "block_influence"  # of the file of the group
        assert list(config.search.distribution) == [44, 52, 4]  # of the experiment
        assert config.calibration.source == "alpaca"
        assert config.model.path == "meta-llama/Llama-2-7b-hf"
    assert list(both[1].evaluation.texts) == ["wikitext2"]
    assert not both[1].evaluation.cost
    assert list(cluster.evaluation.texts) == ["wikitext2"]
    assert cluster.cluster.stall_timeout_s == 1800


def test_an_export_after_a_search_has_the_defaults_of_the_command() -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        asked = compose("export", overrides=["run=DIR", "format=gguf"])
    config = ExportConfig.of_run("DIR", "gguf")
    assert config.problems([]) == []
    names = {field.name for field in fields(ExportConfig)} - {"model"}
    assert {name: getattr(config, name) for name in names} == {name: asked[name] for name in names}
    assert config.max_shard_gb * 1e9 == MAX_SHARD_BYTES, "Python callers have the same one"


def test_experiments_say_how_to_run_them() -> None:
    for file in (CONF / "experiment").glob("**/*.yaml"):
        name = file.relative_to(CONF / "experiment").with_suffix("").as_posix()
        assert re.match(
            r"# @package _global_\n# multipruner (prune|sweep|reproduce|recover) "
            rf"experiment={name}\s",
            file.read_text(),
        ), name


@pytest.mark.parametrize(
    "name", [path.stem for path in (CONF / "experiment/recovery").glob("*.yaml")]
)
def test_trainings_compose(name: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        given = [f"experiment=recovery/{name}", "run=DIR", "calibration.path=FILE"]
        config = RecoverConfig.of(compose("recover", overrides=given), ["experiment"])
    assert config.recovery.settings().steps > 0
    assert config.text().num_block_samples == config.recovery.num_sequences


@pytest.mark.parametrize(("micro", "processes"), [("null", 1), ("3", 3), ("1", 4)])
def test_a_recovery_after_a_search_has_as_many_processes_as_have_something_to_do(
    micro: str, processes: int
) -> None:
    """Of the four evaluators of the search; eight sequences of an update."""
    register()
    given = ["model.path=m", "recovery=lora", f"recovery.micro_batch_size={micro}"]
    with initialize_config_dir(str(CONF), version_base=None):
        raw = compose("prune", overrides=[*given, "cluster.num_evaluators=4"])
        config = RecoverConfig.after(PruneConfig.of(raw), "RUN")
        assert config.cluster.num_evaluators == processes
        assert config.problems([]) == []
        raw = compose("prune", overrides=given)
        assert RecoverConfig.after(PruneConfig.of(raw), "RUN").cluster.num_evaluators is None


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
