"""Sizes that were counted before are what counting says, and are counted anew where they may not
be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PretrainedConfig

from pruning.costs import known_sizes
from pruning.costs.dense_sizes import dense_sizes
from pruning.costs.known_sizes import sizes_of
from pruning.costs.sizes import DenseSizes
from pruning.errors import InputError
from pruning.models.families import FAMILIES
from tests.conftest import ROOT, tiny_config

Saved = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """A folder with the configuration of a tiny model; the cache is empty."""
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))

    def save(model_type: str = "llama", **changes: object) -> str:
        folder = tmp_path / model_type
        tiny_config(model_type, **changes).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[DenseSizes]:
    """What was counted rather than read."""
    done: list[DenseSizes] = []

    def count(*arguments: object, **options: object) -> DenseSizes:
        done.append(dense_sizes(*arguments, **options))  # type: ignore[arg-type]
        return done[-1]

    monkeypatch.setattr(known_sizes.dense_sizes, "dense_sizes", count)
    return done


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_they_are_what_was_counted(saved: Saved, counts: list[DenseSizes], model_type: str) -> None:
    folder = saved(model_type)
    first, second = sizes_of(folder), sizes_of(folder)
    assert counts == [first]
    assert second == first
    assert second.family is FAMILIES[model_type]
    assert first.num_parameters > first.head_weights > 0


def test_another_configuration_is_counted(saved: Saved, counts: list[DenseSizes]) -> None:
    narrow = sizes_of(saved(intermediate_size=48))
    wide = sizes_of(saved(intermediate_size=96))
    assert counts == [narrow, wide]
    assert wide.mlp[0].weights == 2 * narrow.mlp[0].weights


def test_another_version_of_what_counts_counts(
    saved: Saved, counts: list[DenseSizes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = saved()
    sizes_of(folder)
    with monkeypatch.context() as patched:
        patched.setattr(known_sizes, "version", lambda _: "0.0")
        sizes_of(folder)
    assert len(counts) == 2
    package = tmp_path / "costs"
    shutil.copytree(Path(known_sizes.costs.__file__).parent, package)
    with (package / "active_weights.py").open("a") as source:
        source.write("# changed\n")
    with monkeypatch.context() as patched:
        patched.setattr(known_sizes.costs, "__file__", str(package / "__init__.py"))
        sizes_of(folder)
    assert len(counts) == 3
    sizes_of(folder)
    assert len(counts) == 3


@pytest.mark.parametrize("damage", ["", "{", '{"family": "llama"}', "[]", '{"family": "none"}'])
def test_a_damaged_file_is_not_believed(
    saved: Saved, counts: list[DenseSizes], tmp_path: Path, damage: str
) -> None:
    folder = saved()
    first = sizes_of(folder)
    [file] = (tmp_path / "cache").rglob("sizes.json")
    file.write_text(damage)
    assert sizes_of(folder) == first
    assert len(counts) == 2


def test_without_a_cache_it_counts(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = saved()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "file"))
    assert sizes_of(folder).num_parameters > 0


def test_a_model_is_trusted_as_far_as_it_is_said(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[bool] = []

    def count(config: PretrainedConfig, *, trust_remote_code: bool = False) -> DenseSizes:
        trusted.append(trust_remote_code)
        return dense_sizes(config)

    monkeypatch.setattr(known_sizes.dense_sizes, "dense_sizes", count)
    folder = saved()
    for trust in (True, False):
        sizes_of(folder, trust_remote_code=trust)
    assert trusted == [True, False]


def test_code_of_the_model_and_unknown_families_are_counted_each_time(
    saved: Saved, counts: list[DenseSizes], tmp_path: Path
) -> None:
    folder = saved()
    for _ in range(2):
        sizes_of(folder, trust_remote_code=True)
    assert len(counts) == 2
    unknown = saved("stablelm")
    assert sizes_of(unknown) == sizes_of(unknown)
    assert counts[-1].family.model_type == "stablelm"
    assert len(counts) == 4
    assert not list((tmp_path / "cache").rglob("sizes.json"))


def test_what_is_no_model_is_refused_each_time(saved: Saved, tmp_path: Path) -> None:
    folder = saved()
    config = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))
    for _ in range(2):
        with pytest.raises(InputError, match="unknown architecture 'nothing'"):
            sizes_of(folder)
    with pytest.raises(InputError, match=r"no config\.json in"):
        sizes_of(str(tmp_path))


def test_known_sizes_need_no_torch(saved: Saved) -> None:
    folder = saved()
    known = sizes_of(folder)
    program = f"""
import sys
from pruning.costs.known_sizes import sizes_of
print(sizes_of({folder!r}).num_parameters)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(known.num_parameters), "[]"]
