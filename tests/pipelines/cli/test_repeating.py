"""The command that repeats a run: it has the settings of the run."""

from __future__ import annotations

import shlex

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from pipelines.cli.repeating import DECIDES, repeating
from pipelines.config.overrides import CONF, composed
from pipelines.config.prune import PruneConfig
from pipelines.config.schemas import register
from pipelines.runs.resume import saved_form

MIX = "calibration.sources=[{source:text,path:'a b.txt',share:2},{source:c4}]"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["search=allocation", "search.target.flops=0.2", "search.distribution=[0,1,0]"],
        ["search=allocation", "search.target.memory=0.3", "memory.context_length=100"],
        ["search=random", "search.seed=7", "model.dtype=float32"],
        ["search=shortgpt"],
        ["calibration=text", "calibration.path='it\\'s my {text}, =1.txt'", "calibration.seed=3"],
        ["calibration=mix", MIX],
        ["evaluation=full", "export=gguf", "evaluation.limit=20"],
        ["experiment=demo", "model.path=null/True"],
    ],
    ids=" ".join,
)
def test_settings_are_the_same(words: list[str]) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        saved = saved_form(PruneConfig.of(composed("prune", words)))
        command = repeating("prune", saved)
        program, name, *again = shlex.split(command)
        assert (program, name) == ("multipruner", "prune")
        given = [word.partition("=")[0] for word in again]
        assert {each.partition(".")[0] for each in given} <= set(DECIDES)
        config = PruneConfig.of_new(composed("prune", again), given)
    for group in DECIDES:
        settings = [OmegaConf.to_container(each).get(group) for each in (saved_form(config), saved)]
        assert settings[0] == settings[1], group


def test_where_it_computes_and_keeps_is_left_out() -> None:
    register()
    url = "store.url='postgresql://me:hunter2@db/scores'"
    with initialize_config_dir(str(CONF), version_base=None):
        words = ["cluster=inline", url, "output_dir=/here", "search.target_ratio=0.3"]
        command = repeating("prune", saved_form(PruneConfig.of(composed("prune", words))))
    assert command == "multipruner prune search.target_ratio=0.3"
