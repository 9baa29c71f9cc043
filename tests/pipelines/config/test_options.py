"""The list of all options of a command."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines.config.options import (
    COMMANDS,
    choices_of,
    chosen_by,
    comments,
    described_in,
    options_of,
    shown,
    title,
)
from pipelines.config.overrides import CONF, option_names
from pipelines.config.schemas import register

GROUPS = sorted(chosen_by("prune").keys() - {"experiment"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_composes_is_listed_with_its_default(command: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(command)
    every = option_names(config)
    names = {name for name in every if not any(each.startswith(f"{name}.") for each in every)}
    listed = {option.name: option.default for option in options_of(command)}
    assert len(names) >= 3
    assert names <= listed.keys()
    assert {name: listed[name] for name in names} == {
        name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for name in names
        for value in [OmegaConf.select(config, name)]
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_meaning(command: str) -> None:
    assert [option.name for option in options_of(command) if len(option.meaning) < 5] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_group_has_a_meaning(group: str) -> None:
    choices = choices_of(group)
    assert len(choices) >= 2
    assert [choice.name for choice in choices if len(choice.meaning) < 5] == []


def test_allowed_values_are_those_of_the_schema() -> None:
    of_prune = {option.name: option for option in options_of("prune")}
    assert of_prune["search.importance"].allowed == ("activation", "l1", "none")
    assert of_prune["export"].takes == "one of transformers, decilm, gguf or null"
    assert of_prune["search.seed"].takes == "whole number or null"
    assert {option.name: option for option in options_of("reproduce")}["mode"].allowed == (
        "counts",
        "shape",
        "search",
    )


def test_the_fields_of_expected_are_listed_where_they_are_read() -> None:
    listed = {option.name: option for option in options_of("reproduce")}
    assert listed["expected.source"].is_required
    assert listed["expected.tolerance.perplexity"].default == 0.01
    assert listed["expected.pruned.accuracy_average"].type == "number or null"
    assert not [option for option in options_of("prune") if option.name.startswith("expected.")]


def test_groups_of_a_command_with_what_it_takes_of_them() -> None:
    assert chosen_by("export") == {"model": "none"}
    assert chosen_by("prune")["calibration"] == "pydoc"
    assert chosen_by("prune")["experiment"] is None


def test_a_choice_has_the_values_that_it_inherits() -> None:
    ptb = next(choice for choice in choices_of("calibration") if choice.name == "ptb")
    assert ptb.values["num_block_samples"] == 2048
    assert ptb.values["sequence_length"] == 2048


def test_the_meaning_is_the_comment_above_an_option_else_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "# multipruner a\n# Title\ndefaults: [b]\n"
        "# of one,\n# in two lines\none: 1\ntwo: 2 # of two\nthree: '#3'\n"
    )
    assert comments(path) == {"one": "of one, in two lines", "two": "of two"}
    assert title(path) == "Title"


def test_an_option_of_a_group_is_described_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one: 1 # here\n")
    (tmp_path / "b.yaml").write_text("one: 2\ntwo: 3 # there\n")
    assert described_in([tmp_path / "a.yaml", tmp_path / "b.yaml"]) == {
        "one": "here",
        "two": "there",
    }
    (tmp_path / "c.yaml").write_text("one: 3 # and there\n")
    with pytest.raises(ValueError, match="c.yaml: one: described in another file as well"):
        described_in([tmp_path / "a.yaml", tmp_path / "c.yaml"])


def test_a_choice_that_extends_another_may_say_why_it_differs() -> None:
    """As cluster=ray does of a time that it sets: the meaning stays that of the first file."""
    assert "machines" in comments(CONF / "cluster/ray.yaml")["stall_timeout_s"]
    of_prune = {option.name: option for option in options_of("prune")}
    assert of_prune["cluster.stall_timeout_s"].meaning.startswith("Seconds")


def test_values_are_shown_as_one_writes_them() -> None:
    given = [None, True, 0.1, 5.0, 0.00005, 42, "", "a", [44, 52.5], [], {}]
    assert [shown(value) for value in given] == (
        ["null", "true", "0.1", "5", "0.00005", "42", '""', "a", "[44,52.5]", "[]", "{}"]
    )
