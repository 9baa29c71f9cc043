"""Each mistake gives one clear error, names the field, and starts nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_config, tiny_model
from tests.pipelines.conftest import Search


def refused(search: Search, *overrides: str, says: list[str], folder: str = "run") -> None:
    outcome = search(*overrides, folder=folder)
    assert outcome.status == 2, outcome.output
    assert "Traceback" not in outcome.output
    text = outcome.output.replace("\n", " ")
    for words in says:
        assert words in text, outcome.output
    assert not (outcome.folder / "trajectory.jsonl").exists()


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


def test_an_unreachable_target_keeps_everything(search: Search) -> None:
    outcome = search(
        "search.target_ratio=0.6", "search.distribution=[0,1,0]", "search.mlp_group_channels=24"
    )
    assert outcome.status == 2
    assert "stage 'mlp_channels' has no candidate left at ratio 0.2" in outcome.output.replace(
        "\n", " "
    )
    assert len(outcome.trajectory) == 4
    assert "no candidate left" in outcome.summary["status"]
    assert all(
        (outcome.folder / name).exists()
        for name in ("shape.json", "pruning_config.json", "trajectory.png", "shape.png")
    )
    again = search(
        "search.target_ratio=0.6", "search.distribution=[0,1,0]", "search.mlp_group_channels=24"
    )
    assert again.status == 2
    assert again.summary["evaluations"]["scored"] == 0


def _with_broken_weights(folder: Path, path: Path, change: object) -> Path:
    copy = Path(shutil.copytree(folder, path))
    weights = load_file(copy / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_model_that_gives_nan_stops_with_the_cause(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    broken = _with_broken_weights(
        checkpoint_folder,
        tmp_path / "nan",
        lambda weights: weights["model.norm.weight"].fill_(torch.nan),
    )
    outcome = search(f"model.path={broken}")
    assert outcome.status == 1
    assert "the NLL of all 8 candidates is NaN or infinite" in outcome.output.replace("\n", " ")
    assert "Traceback" not in outcome.output


def test_a_candidate_that_gives_nan_is_out(
    search: Search, tmp_path: Path, checkpoint_folder: Path
) -> None:
    """Layer 1's MLP overflows unless its attention is there: with it removed, or in float16, that
    happens in real models.
    """

    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.3.mlp.down_proj.weight"].fill_(torch.nan)

    broken = _with_broken_weights(checkpoint_folder, tmp_path / "one-nan", poison)
    outcome = search(
        f"model.path={broken}",
        "search.importance=l1",
        "search.target_ratio=0.1",
        "search.distribution=[1,0,0]",
    )
    assert outcome.status == 0, outcome.output
    first = json.loads((outcome.folder / "trajectory.jsonl").read_text().splitlines()[0])
    assert first["removed"] == {"kind": "mlp", "layer": 3, "mlp_channels": 0}
    assert [candidate["nll"] is None for candidate in first["candidates"]] == [True] * 7 + [False]
    assert (
        "NaN or infinite score, out: attention block of layer 0, attention block of layer 1"
        in outcome.output.replace("\n", " ")
    )
    assert (
        search(
            f"model.path={broken}",
            "search.importance=l1",
            "search.target_ratio=0.1",
            "search.distribution=[1,0,0]",
        ).summary["evaluations"]["scored"]
        == 0
    )


def test_a_folder_of_another_run(search: Search) -> None:
    first = search()
    text = (first.folder / "trajectory.jsonl").read_text()
    outcome = search("search.target_ratio=0.3", "calibration.batch_size=2")
    assert outcome.status == 2
    assert "belongs to another run" in outcome.output.replace("\n", " ")
    assert "search.target_ratio: 0.25 there, 0.3 here" in outcome.output
    assert "calibration.batch_size: 4 there, 2 here" in outcome.output
    assert (first.folder / "trajectory.jsonl").read_text() == text
    assert search("resume=true", "search.target_ratio=0.3", bare=True).status == 2


@pytest.mark.parametrize(
    ("choice", "variable"),
    [("tracking=server", "MLFLOW_TRACKING_URI"), ("store=postgresql", "MULTIPRUNER_STORE_URL")],
)
def test_a_url_that_should_be_in_the_environment(
    search: Search, choice: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    outcome = search(choice, bare=True)
    assert outcome.status == 2
    assert f"empty; put it into the environment, as {variable}=" in outcome.output.replace(
        "\n", " "
    )


def test_a_password_has_to_be_given_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not saved, and the run must not go on with another store or server in silence."""
    monkeypatch.setattr("pipelines.tracking.tracker.FINISH_TIMEOUT_S", 0.1)
    outcome = search("tracking.uri=http://me:hunter2@127.0.0.1:9", "search.target_ratio=0.9")
    assert "http://me:***@127.0.0.1:9" in (outcome.folder / "config.yaml").read_text()
    refused_again = search("resume=true", bare=True)
    assert refused_again.status == 2
    assert (
        "tracking.uri: the run in output_dir used http://me:***@127.0.0.1:9, and passwords are "
        "not saved"
    ) in refused_again.output.replace("\n", " ")


def test_a_password_is_not_in_the_message_about_its_own_option(search: Search) -> None:
    outcome = search("store.url=[postgresql://me:hunter2@db/scores")
    assert outcome.status == 2
    assert "hunter2" not in outcome.output
    assert "***" in outcome.output


def test_a_folder_of_something_else(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    refused(search, says=["is not empty and not a run's folder (it has thesis.tex)"])


def test_a_folder_in_use(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        refused(search, says=["another process is at work in"])


def test_an_edited_trajectory(search: Search) -> None:
    first = search()
    path = first.folder / "trajectory.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = (
        lines[1].replace('"nll": ', '"nll": 1', 1)
        if json.loads(lines[1])["candidates"][0]["nll"] > 9
        else json.dumps(
            json.loads(lines[1]) | {"removed": {"kind": "mlp", "layer": 0, "mlp_channels": 0}}
        )
    )
    path.write_text("\n".join(lines) + "\n")
    outcome = search()
    assert outcome.status == 2
    assert "step 2 of" in outcome.output
    path.write_text("not json\n")
    assert "is damaged" in search().output.replace("\n", " ")


def test_a_corrupt_store(search: Search, tmp_path: Path) -> None:
    (tmp_path / "scores.db").write_bytes(b"this is no database, whatever its name says" * 50)
    refused(search, says=["store.url:", "file is not a database", "give another store.url"])
    with sqlite3.connect(tmp_path / "future.db") as store:
        store.execute("create table schema_version (version integer primary key)")
        store.execute("insert into schema_version values (99)")
    refused(
        search,
        f"store.url=sqlite:///{tmp_path}/future.db",
        says=["has schema version 99, this program writes 1"],
    )


def test_a_locked_store(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.store.scores.SQLITE_TIMEOUT_S", 0.2)
    search()
    with sqlite3.connect(tmp_path / "scores.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        outcome = search("calibration.batch_size=2", folder="second")
        assert outcome.status == 2
        assert "database is locked" in outcome.output
        assert "another process is writing to it" in outcome.output.replace("\n", " ")
        other.execute("rollback")
    assert search("calibration.batch_size=2", folder="second").status == 0


def test_a_full_disk(search: Search, tmp_path: Path) -> None:
    """The kernel refuses every write beyond a file size, as a full disk would; afterwards the same
    command goes on.
    """
    whole = search(folder="whole")
    journal = tmp_path / "run/trajectory.jsonl"
    limit = 2000
    assert (whole.folder / "trajectory.jsonl").stat().st_size > limit
    from pipelines.runs.journal import Journal

    append = Journal.append

    def limited(self: Journal, line: dict[str, object]) -> None:
        if journal.exists() and journal.stat().st_size > limit:
            raise OSError(28, "No space left on device", str(journal))
        append(self, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", limited)
        outcome = search()
    assert outcome.status == 1
    assert "No space left on device" in outcome.output
    assert (
        f"To go on: python -m pipelines.prune resume=true output_dir={outcome.folder}"
        in outcome.output.replace("\n", " ")
    )
    resumed = search()
    assert resumed.status == 0
    assert resumed.trajectory == whole.trajectory


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    from pipelines.runs.journal import Journal

    (tmp_path / "trajectory.jsonl").symlink_to("/dev/full")
    journal = Journal.__new__(Journal)
    journal.path, journal.lines = tmp_path / "trajectory.jsonl", []
    with pytest.raises(OSError, match="No space left"):
        journal.append({"step": 1})
    assert journal.lines == []


def test_a_place_that_cannot_be_written(search: Search) -> None:
    """/proc is read-only for everyone, root included."""
    outcome = search("output_dir=/proc/nowhere")
    assert outcome.status == 2
    assert "output_dir: cannot write to /proc/nowhere" in outcome.output
    outcome = search("store.url=sqlite:////proc/nowhere/scores.db")
    assert outcome.status == 2
    assert "store.url: sqlite:////proc/nowhere/scores.db" in outcome.output.replace("\n", "")
