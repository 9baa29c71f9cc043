"""`calibration=mix` from the command line: each source told apart, statistics of all together."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from safetensors.numpy import load_file, save_file

from tests.conftest import tokens
from tests.pipelines.command import Outcome
from tests.pipelines.conftest import Cli, Search
from tests.tiny_search import tiny_search

Words = list[str]


@pytest.fixture
def mixture(
    tmp_path: Path,
    checkpoint_folder: Path,
    token_file: Path,
    store_and_tracking: list[str],
) -> Words:
    """A search of the tiny model on two files of tokens, one of them named relative to the folder
    of the test, in shares of 1 and 3.
    """
    other = tokens(40, 32).numpy()[:, ::-1].astype(np.int64)
    save_file({"input_ids": np.ascontiguousarray(other)}, tmp_path / "other.safetensors")
    sources = (
        f"[{{source: tokens, path: {token_file}, name: first}},"
        "{source: tokens, path: other.safetensors, share: 3}]"
    )
    changes = ["calibration=mix", "calibration.path=null", f"calibration.sources={sources}"]
    words = tiny_search(checkpoint_folder, token_file, *changes)
    return [*words, *store_and_tracking]


@pytest.fixture
def found(cli: Cli, mixture: Words) -> Outcome:
    outcome = cli("prune", *mixture, folder="run")
    assert outcome.status == 0, outcome.output
    return outcome


def alone(search: Search, path: object, num_samples: tuple[int, int, int], folder: str) -> Outcome:
    names = ("block", "width", "heldout")
    numbers = zip(names, num_samples, strict=True)
    given = [f"calibration.num_{name}_samples={number}" for name, number in numbers]
    outcome = search(f"calibration.path={path}", *given, folder=folder)
    assert outcome.status == 0, outcome.output
    return outcome


def test_the_heldout_perplexity_of_each_source_is_told_apart(
    found: Outcome, search: Search, token_file: Path
) -> None:
    """The dense model has it on the same text alone; all together it is their mean per token."""
    perplexity, texts = found.summary["perplexity"], found.summary["calibration"]
    assert set(perplexity) == {"block", "width", "heldout", "heldout_first", "heldout_other"}
    for name, path, numbers in (
        ("first", token_file, (2, 2, 1)),
        ("other", "other.safetensors", (6, 4, 3)),
    ):
        summary = alone(search, path, numbers, name).summary
        dense = summary["perplexity"]["heldout"]["dense"]
        assert perplexity[f"heldout_{name}"]["dense"] == pytest.approx(dense, rel=1e-5)
        for set_name, number in zip(("block", "width", "heldout"), numbers, strict=True):
            assert texts[f"{set_name}_{name}"] == summary["calibration"][set_name]
            assert texts[f"{set_name}_{name}"]["num_sequences"] == number
    for side in ("dense", "pruned"):
        logs = {name: math.log(pair[side]) for name, pair in perplexity.items()}
        mean = (logs["heldout_first"] + 3 * logs["heldout_other"]) / 4
        assert logs["heldout"] == pytest.approx(mean)
        assert logs["heldout_first"] != pytest.approx(logs["heldout_other"], rel=1e-3)


def test_the_nll_of_each_heldout_sequence_is_kept(found: Outcome) -> None:
    """Standard errors of differences between runs are made of it."""
    sequences, perplexity = found.summary["nll_per_sequence"], found.summary["perplexity"]
    assert {name: len(nll["pruned"]) for name, nll in sequences.items()} == {
        "heldout": 4,
        "heldout_first": 1,
        "heldout_other": 3,
    }
    for name, nll in sequences.items():
        for side in ("dense", "pruned"):
            assert math.exp(statistics.fmean(nll[side])) == pytest.approx(perplexity[name][side])


def test_people_and_mlflow_see_each_source(found: Outcome, tmp_path: Path) -> None:
    assert "calibration mix of first 0.25, other 0.75" in found.output
    for line in ("held-out text", "held-out first", "held-out other"):
        assert f"perplexity, {line}" in found.output
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    for name, pair in found.summary["perplexity"].items():
        assert run.data.metrics[f"result/{name}_perplexity"] == pytest.approx(pair["pruned"])
        assert run.data.metrics[f"result/{name}_perplexity_dense"] == pytest.approx(pair["dense"])
    for name, text in found.summary["calibration"].items():
        assert run.data.tags[f"calibration.{name}.fingerprint"] == text["fingerprint"]
    datasets = {entry.dataset.name for entry in run.inputs.dataset_inputs}
    assert datasets == {f"mix-{name}" for name in found.summary["calibration"]}


def test_a_mixture_says_its_sources_and_goes_on_from_anywhere(
    found: Outcome, search: Search, mixture: Words, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.summary["identity"]["calibration.sources"] == "first 0.25, other 0.75"
    saved = yaml.safe_load((found.folder / "config.yaml").read_text())["calibration"]["sources"]
    assert [Path(each["path"]).is_absolute() for each in saved] == [True, True]
    before = found.trajectory
    (found.folder / "summary.json").unlink()
    path = found.folder / "trajectory.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir("/")
        again = search("resume=true", f"output_dir={found.folder}", "cluster=inline", bare=True)
    assert again.status == 0, again.output
    assert again.trajectory == before
    assert again.summary["evaluations"]["scored"] == 0
    other = cli("prune", *mixture, "calibration.sources.0.share=2", folder="run")
    assert other.status == 2
    assert "calibration.sources: first 0.25, other 0.75 there, first 0.4, other 0.6 here" in (
        other.output
    )


def test_one_text_leaves_no_trace_of_mixtures(undisturbed: Outcome) -> None:
    config = yaml.safe_load((undisturbed.folder / "config.yaml").read_text())
    assert "sources" not in config["calibration"]
    assert "calibration.sources" not in undisturbed.summary["identity"]
    assert set(undisturbed.summary["calibration"]) == {"block", "width", "heldout"}


def test_statistics_are_those_of_all_sources(
    cli: Cli, mixture: Words, search: Search, token_file: Path
) -> None:
    """Gram matrices add up over the texts."""
    method = ("search=allocation", "search.target_ratio=0.05", "search.distribution=[0,1,0]")

    def statistics(outcome: Outcome) -> dict[str, np.ndarray]:
        assert outcome.status == 0, outcome.output
        return load_file(outcome.folder / "statistics.safetensors")

    words = [word for word in mixture if not word.startswith("search.")]
    whole = statistics(cli("prune", *words, *method, folder="run"))
    parts = [
        statistics(
            search(
                *method,
                f"calibration.path={path}",
                f"calibration.num_width_samples={number}",
                folder=f"{number}",
            )
        )
        for path, number in ((token_file, 2), ("other.safetensors", 4))
    ]
    assert whole["num_tokens"] == 6 * 32 == sum(part["num_tokens"] for part in parts)
    assert len(whole) > 4
    for name in whole.keys() - {"num_tokens"}:
        expected = sum(part[name].astype(np.float64) for part in parts)
        np.testing.assert_allclose(whole[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)
        assert not np.allclose(whole[name], 3 * parts[0][name], rtol=1e-2)
