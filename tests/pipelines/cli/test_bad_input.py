"""Each mistake gives one clear error, names the field, and starts nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import tiny_config, tiny_model
from tests.pipelines.cli.conftest import refused
from tests.pipelines.conftest import Search


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["search.target_ratio=0"],
            ["search.target_ratio: 0; it is removed / all parameters, above 0 and below 1"],
        ),
        (["search.target_ratio=-0.1"], ["search.target_ratio: -0.1"]),
        (["search.target_ratio=1"], ["search.target_ratio: 1;"]),
        (["search.target_ratio=22"], ["search.target_ratio: 22", "did you mean 0.22?"]),
        (["search.target=0.2"], ["search.target=0.2: a target is of a cost, such as"]),
        (["search.target_ratio=nan"], ["search.target_ratio: nan"]),
        (
            ["search.target_ratio=lots"],
            ["search.target_ratio=lots", "could not be converted to Float"],
        ),
        (
            ["search.distribution=[44,52]"],
            ["search.distribution: [44.0, 52.0]; it takes three numbers >= 0"],
        ),
        (["search.distribution=[44,-52,4]"], ["search.distribution"]),
        (["search.distribution=[0,0,0]"], ["with a positive sum"]),
        (
            ["search.importance=random"],
            ["search.importance: 'random'; one of activation, l1, none"],
        ),
        (
            ["search.compensation=least_squares", "search.distribution=[1,0,0]"],
            ["search.compensation: least_squares, which has no effect", "no width changes"],
        ),
        (
            ["search.mlp_group_channels=49"],
            ["search.mlp_group_channels: 49; this model's MLPs have 48 channels"],
        ),
        (["search.head_group_channels=8"], ["search.head_group_channels: 8", "one of [16]"]),
        (["search.head_group_channels=32"], ["one of [16]"]),
        (
            ["search.target_rato=0.1"],
            ["search.target_rato: no such option; did you mean search.target_ratio?"],
        ),
        (
            ["serach.target_ratio=0.1"],
            ["serach.target_ratio: no such option; did you mean search.target_ratio?"],
        ),
        (
            ["calibration=pydocs"],
            ["calibration=pydocs", "Could not find 'calibration/pydocs'", "alpaca"],
        ),
        (
            ["calibration.sequence_length=300"],
            ["calibration.sequence_length: 300, above this model's context of 256 tokens"],
        ),
        (["calibration.num_block_samples=25"], ["25 sequences asked for", "has 24"]),
        (["calibration.batch_size=0"], ["calibration.batch_size: 0; at least 1"]),
        (
            ["model.dtype=float8"],
            ["model.dtype: 'float8'; one of auto, float32, bfloat16, float16"],
        ),
        (
            ["model.path=/no/such/folder"],
            ["model.path: '/no/such/folder' is neither an existing folder"],
        ),
        (
            ["model.path=org/no-such-model"],
            ["no folder 'org/no-such-model'", "hub cannot be reached"],
        ),
        (
            ["cluster=local", "cluster.num_gpus_per_evaluator=2"],
            ["evaluators with 2 GPU each asked for; this machine has"],
        ),
        (
            ["cluster=local", "cluster.num_gpus=4", "cluster.num_evaluators=5"],
            ["5 evaluators with 1 GPU each asked for; this machine has 4 GPU"],
        ),
        (["cluster.num_evaluators=3"], ["cluster=inline is one evaluator"]),
        (
            ["cluster=ray", "cluster.address=null"],
            [
                (
                    "cluster.address: missing; give HOST:PORT of the head of a running Ray "
                    "cluster, "
                    "or auto"
                )
            ],
        ),
        (
            ["cluster=ray", "cluster.num_gpus_per_evaluator=null"],
            ["cluster.num_gpus_per_evaluator: null; with cluster=ray give a number"],
        ),
        (
            ["cluster=ray", "cluster.label_selector={a b: c, zone: 'in(a,b', kind: '!in(x, y)'}"],
            [
                "cluster.label_selector: a b: c; Ray takes NAME: VALUE, !VALUE",
                "cluster.label_selector: zone: in(a,b; Ray takes NAME: VALUE, !VALUE",
            ],
        ),
        (
            ["cluster=ray", "cluster.label_selector=H100"],
            ["cluster.label_selector: H100; give a mapping such as {ray.io/acc"],
        ),
        (
            ["cluster=local", "cluster.label_selector={zone: a}"],
            ["cluster.label_selector: {'zone': 'a'}, which has no effect with cluster=local"],
        ),
        (
            ["cluster=ray", "cluster.num_gpus=4"],
            ["cluster.num_gpus: 4, which has no effect with cluster=ray"],
        ),
        (
            ["cluster=local", "cluster.address=auto"],
            [
                (
                    "cluster.address: auto, which has no effect with cluster=local; it is for "
                    "cluster=ray"
                )
            ],
        ),
        (
            ["cluster.allow_open=true"],
            ["cluster.allow_open: True, which has no effect with cluster=inline"],
        ),
        (["cluster.stall_timeout_s=0"], ["cluster.stall_timeout_s: 0; it is in seconds, above 0"]),
        (["store.url=nonsense"], ["store.url: 'nonsense' is not an SQLAlchemy URL"]),
        (
            ["tracking.uri=mlruns"],
            ["tracking.uri: mlruns; give sqlite:///FILE or http(s)://HOST:PORT"],
        ),
        (
            ["experiment=[demo,multipruner/llama2_7b_22]"],
            [
                (
                    "experiment=[demo,multipruner/llama2_7b_22]: takes one file of "
                    "conf/experiment; "
                    "a list is for"
                )
            ],
        ),
        (["+experiment=[demo]"], ["+experiment=[demo]: takes one file of conf/experiment"]),
        (["search=null"], ["search=null: takes the name of a file of conf/search; give one"]),
        (["search=[random,shortgpt]"], ["search=[random,shortgpt]: takes one file of conf/search"]),
        (["resume=true"], ["no config.yaml in", "no run to resume"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_options(search: Search, overrides: list[str], says: list[str]) -> None:
    refused(search, *overrides, says=says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["cluster=ray", "cluster.address=here"],
            ["cluster.address: 'here' is neither auto nor HOST:PORT, such as 10.0.0.5:6379"],
        ),
        (
            ["cluster=ray", "cluster.address=ray://10.0.0.5:10001"],
            ["cluster.address: ray://10.0.0.5:10001 is the address of a Ray Client server"],
        ),
        (
            ["cluster=ray", "cluster.address=127.0.0.1:1", "cluster.join_timeout_s=1"],
            ["cluster.address: nothing answers at 127.0.0.1:1"],
        ),
    ],
)
def test_clusters_that_cannot_be_joined(
    search: Search, overrides: list[str], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tests in this process may have connected it to a Ray of their own."""
    monkeypatch.setattr("workers.cluster.ray_session.ray.is_initialized", lambda: False)
    refused(search, *overrides, says=says)


def test_an_experiment_that_names_a_file_that_is_not_there(search: Search, own_conf: Path) -> None:
    (own_conf / "experiment" / "own.yaml").write_text("# @package _global_\ndefaults: [nowhere]\n")
    refused(
        search,
        "experiment=own",
        says=["experiment=own: In 'experiment/own': Could not load 'experiment/nowhere'"],
    )


def test_all_at_once(search: Search) -> None:
    outcome = search("experiment=[demo,nope]", "search.target_rato=0.1")
    assert len(outcome.errors) == 2
    outcome = search(
        "search.target_ratio=22",
        "search.distribution=[1]",
        "calibration.batch_size=0",
        "model.dtype=int8",
        "cluster.start_timeout_s=0",
    )
    assert len(outcome.errors) == 5
    outcome = search("search.target_rato=0.1", "search.target_ratio=many", "calibration=pydocs")
    assert len(outcome.errors) == 3
    outcome = search(
        "search.mlp_group_channels=100",
        "search.head_group_channels=5",
        "calibration.sequence_length=999",
    )
    assert len(outcome.errors) == 3


def test_a_folder_without_safetensors(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    broken = shutil.copytree(checkpoint_folder, tmp_path / "broken")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refused(search, f"model.path={broken}", says=["no *.safetensors", "pytorch_model.bin"])


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("bert", "not a decoder-only language model"),
        ("nonesuch", "unknown architecture 'nonesuch'"),
    ],
)
def test_architectures(
    search: Search, tmp_path: Path, checkpoint_folder: Path, model_type: str, says: str
) -> None:
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": model_type}))
    refused(search, f"model.path={other}", says=[says])


def test_remote_code_needed_but_off(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    (other / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    )
    refused(
        search,
        f"model.path={other}",
        says=[
            "model.trust_remote_code: false",
            "pass model.trust_remote_code=true if you trust it",
        ],
    )


def test_a_family_of_blocks_says_so(search: Search, tmp_path: Path) -> None:
    tiny_model(tiny_config("starcoder2")).save_pretrained(tmp_path / "blocks")
    refused(
        search,
        f"model.path={tmp_path}/blocks",
        says=["'starcoder2' is pruned by whole blocks only; use search.distribution=[1,0,0]"],
    )
    outcome = search(f"model.path={tmp_path}/blocks", "search.distribution=[1,0,0]")
    assert outcome.status == 0, outcome.output
    assert (
        "architecture starcoder2 is outside the registry of families: it is pruned by whole "
        "blocks only"
    ) in outcome.output
    assert outcome.summary["ratio"] >= 0.25


def test_token_ids_outside_the_vocabulary(search: Search, tmp_path: Path) -> None:
    save_file({"input_ids": torch.full((24, 32), 500)}, tmp_path / "foreign.safetensors")
    refused(
        search,
        f"calibration.path={tmp_path}/foreign.safetensors",
        says=["token id 500, outside the model's vocabulary 0..127"],
    )


def test_text_without_tokenizer_or_words(search: Search, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    refused(search, "calibration=text", f"calibration.path={tmp_path}/empty.txt", says=["is empty"])
    (tmp_path / "words.txt").write_text("words " * 100)
    refused(
        search,
        "calibration=text",
        f"calibration.path={tmp_path}/words.txt",
        says=["no usable tokenizer"],
    )
