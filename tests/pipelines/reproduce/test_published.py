"""Published runs: what they say of counts holds, and a figure that is wrong is called so."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from pipelines.config.overrides import CONF
from pipelines.config.plan import PlanConfig
from pipelines.config.prune import PruneConfig
from pipelines.config.reproduce import ReproduceConfig
from pipelines.config.schemas import register
from pipelines.reproduce.counts import count_checks
from pruning.costs.accounting import Accounting
from pruning.export.authors_config import read_authors_config
from pruning.shape import ModelShape
from tests.pipelines.reproduce.conftest import Reproduce, outside

NAMES = [
    f"{folder}/{path.stem}"
    for folder in ("multipruner", "blockpruner", "shortgpt")
    for path in sorted((CONF / "experiment" / folder).glob("*.yaml"))
]


MULTIPRUNER = [name for name in NAMES if name.startswith("multipruner/")]


@cache
def checked(name: str) -> ReproduceConfig:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        return ReproduceConfig.given_with(
            compose("reproduce", overrides=[f"experiment={name}"]), []
        )


def test_all_published_runs_are_here() -> None:
    assert len(MULTIPRUNER) == 21
    assert len([name for name in NAMES if name.startswith("blockpruner/")]) == 13


@pytest.mark.parametrize("name", MULTIPRUNER + NAMES[-1:])
def test_every_command_takes_every_experiment(name: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        pruning = PruneConfig.of(compose("prune", overrides=[f"experiment={name}"]))
        planning = PlanConfig.of(compose("plan", overrides=[f"experiment={name}"]))
    config = checked(name)
    assert pruning.problems() == planning.problems() == []
    assert pruning.search == planning.search == config.search
    assert (
        pruning.calibration.source,
        pruning.calibration.num_block_samples,
        pruning.calibration.sequence_length,
    ) == ("alpaca", 256, 2048)


@pytest.mark.parametrize("name", NAMES)
def test_counts(name: str) -> None:
    """To the unit, with neither weights nor network; what cannot be checked says why."""
    checks = count_checks(checked(name))
    assert [check for check in checks if check.verdict == "outside"] == []
    assert all(check.note for check in checks if check.verdict == "not checked")
    if name in MULTIPRUNER and name != "multipruner/baichuan2_13b_24":
        assert {check.verdict for check in checks} == {"within"}
        assert len(checks) == 12


def test_evaluations_of_llama_2_7b() -> None:
    checks = {check.quantity: check for check in count_checks(checked("multipruner/llama2_7b_22"))}
    expected = {"blocks": "595", "MLP channels": "1,705", "attention heads": "529"}
    assert {stage: checks[f"evaluations, {stage}"].expected for stage in expected} == expected


def test_a_search_towards_another_cost_has_no_plan_to_check() -> None:
    config = checked("multipruner/llama2_7b_22")
    config.search.target_ratio, config.search.target.latency = None, 0.2
    unchecked = [check for check in count_checks(config) if check.verdict == "not checked"]
    assert len(unchecked) == 7
    assert all("search.target.latency: such a search ends by" in each.note for each in unchecked)


def test_the_run_without_a_published_distribution() -> None:
    checks = count_checks(checked("multipruner/baichuan2_13b_24"))
    unchecked = [check for check in checks if check.verdict == "not checked"]
    assert len(unchecked) == 7
    assert all("no distribution is published" in check.note for check in unchecked)
    assert [check.verdict for check in checks if "parameters" in check.quantity] == [
        "within",
        "within",
    ]


@pytest.mark.parametrize(
    ("override", "quantities"),
    [
        ("expected.pruned.num_parameters=5258874881", ["parameters, pruned", "ratio"]),
        ("expected.dense.num_parameters=6738415617", ["parameters, dense", "ratio"]),
        ("expected.removed_mlp=[8,9]", ["layers without MLP"]),
        ("search.target_ratio=0.22", ["target ratio that ends in this shape"]),
        (
            "search.distribution=[10,86,4]",
            ["target ratio that ends in this shape", "evaluations, blocks"],
        ),
    ],
    ids=["pruned", "dense", "blocks", "target", "distribution"],
)
def test_a_wrong_figure_is_outside(run: Reproduce, override: str, quantities: list[str]) -> None:
    outcome = run("experiment=multipruner/llama2_7b_22", override)
    assert outcome.status == 1
    assert set(quantities) <= set(outside(outcome))
    assert outcome.read("verdict.json")["verdict"] == "outside"
    [error] = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: outside the tolerance: ")
    assert all(quantity in error for quantity in quantities)


def test_within(run: Reproduce) -> None:
    outcome = run("experiment=multipruner/qwen1_5_7b_22")
    assert outcome.status == 0, outcome.output
    assert (
        outcome.read("verdict.json")["num_within"],
        outcome.read("verdict.json")["num_outside"],
        outcome.read("verdict.json")["num_not_checked"],
    ) == (12, 0, 0)
    assert "published with target_ratio 0.22" in outcome.output
    assert "12 within, 0 outside, 0 not checked" in outcome.output


@pytest.mark.data
def test_experiments_say_what_was_published(shared: Path) -> None:
    """Every figure of every run, and its settings; where `search` differs from them,
    `expected.settings` has them.
    """
    published = json.loads((shared / "published/multipruner.json").read_text())
    table = json.loads((shared / "published/baselines.json").read_text())["table"]
    found = {}
    for name in MULTIPRUNER:
        config = checked(name)
        found[
            config.model.path,
            round(100 * config.reference.settings.get("target_ratio", config.search.target_ratio)),
        ] = config
    assert len(found) == len(published) == 21
    for run in published:
        config = found[run["hub_id"], run["target_ratio_percent"]]
        expected, search = config.reference, config.search
        assert dict(expected.config) == run["config"]
        distribution = expected.settings.get("distribution") or (
            None if expected.no_plan else ":".join(f"{share:g}" for share in search.distribution)
        )
        assert distribution == run["distribution"]
        assert search.mlp_group_channels == (run["mlp_channel_group_size"] or 1024)
        heads = search.head_group_channels
        if not search.distribution[2]:  # does nothing; the default is what was published
            assert heads is None
            heads = run["config"]["hidden_size"] // run["config"]["num_key_value_heads"]
        assert heads == run["attn_channel_group_size"]
        assert (expected.dense.num_parameters, expected.pruned.num_parameters) == (
            run["total_params"],
            run["pruned_params"],
        )
        assert dict(expected.pruned.perplexity) == {"wikitext2": run["wikitext2_ppl"]}
        assert expected.pruned.accuracy_average == pytest.approx(run["accuracy_average"] / 100)
        assert {
            task: round(100 * value, 2) for task, value in expected.pruned.accuracy.items()
        } == run["accuracy"]
        assert [expected.removed_attention, expected.removed_mlp] == [
            run["pruning_config"]["pruned_attn_idx"],
            run["pruning_config"]["pruned_mlp_idx"],
        ]
        accounting = _accounting(run["config"])
        shape = read_authors_config(
            run["pruning_config"],
            accounting.dense,
            channels_per_kv_head=accounting.geometry.channels_per_kv_head,
        )
        assert expected.shape is not None
        assert ModelShape.parse(expected.shape) == shape
        dense = next(
            row["dense"]
            for name, row in table.items()
            if name.partition("@")[0] == run["model"].removesuffix("-Base")
        )
        assert [
            expected.dense.perplexity["wikitext2"],
            round(100 * (expected.dense.accuracy_average or 0), 2),
        ] == dense


def _accounting(config: dict[str, Any]) -> Accounting:
    from transformers import AutoConfig

    return Accounting(AutoConfig.for_model(**config))
