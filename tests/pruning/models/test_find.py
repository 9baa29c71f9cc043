from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.errors import InputError
from pruning.models import baichuan
from pruning.models.find import find_checkpoint


def test_of_a_hub_model_only_what_is_read_is_downloaded(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repositories hold the same weights in several formats."""
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(checkpoint_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_checkpoint("org/model", revision="v1", config_only=True)
    json_alone = ("org/model", {"revision": "v1", "allow_patterns": ["*.json"]})
    assert asked == [json_alone]
    find_checkpoint("org/model", revision="v1")
    [_, again, (name, options)] = asked
    assert again == json_alone
    assert (name, options["revision"]) == ("org/model", "v1")
    patterns = set(options["allow_patterns"])
    assert {"*.json", "*.safetensors"} <= patterns
    assert not patterns & {"*", "*.bin", "*.pt", "*.pth"}


@pytest.mark.parametrize(("revision", "at"), [(None, ""), ("v9", " at revision 'v9'")])
def test_a_model_that_the_hub_does_not_give(
    revision: str | None, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a gated one, or of a revision that is not there."""

    def download(*_: object, **__: object) -> str:
        raise OSError("403 Client Error\nCannot access gated repo")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError) as raised:
        find_checkpoint("org/model", revision=revision)
    assert str(raised.value) == (
        "model.path: there is no folder 'org/model', and the hub does not give a model of that "
        f"name{at}: 403 Client Error"
    )


BAICHUAN = {"model_type": "baichuan", "max_position_embeddings": 64}


def test_baichuan_alone_is_converted(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its weights, into the cache; what comes of it needs no code of its own."""
    monkeypatch.setenv("MULTIPRUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        baichuan, "converted", lambda folder, raw, weights, cache: cache / f"of-{weights[0].name}"
    )
    (tmp_path / "config.json").write_text(json.dumps(BAICHUAN))
    (tmp_path / "model.safetensors").touch()
    found = find_checkpoint(str(tmp_path), trust_remote_code=True)
    assert (found.folder.name, found.trust_remote_code) == ("of-model.safetensors", False)
    assert found.folder.parent == tmp_path / "cache"
    for trust in (False, True):
        found = find_checkpoint(str(checkpoint_folder), trust_remote_code=trust)
        assert (found.folder, found.trust_remote_code) == (checkpoint_folder.resolve(), trust)
    assert not find_checkpoint(str(checkpoint_folder)).trust_remote_code


def test_what_cannot_be_run_is_refused_before_its_weights_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "baichuan"}))
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append(options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError, match="Baichuan model with ALiBi positions"):
        find_checkpoint("org/model")
    assert asked == [["*.json"]]


def test_what_is_no_folder_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_text("x")
    for name, said in (
        (str(tmp_path / "file.bin"), "is a file; expected a folder"),
        (str(tmp_path), "no config.json in"),
        ("org/no-such-model", "no folder 'org/no-such-model'.*hub cannot be reached"),
        ("/no/such/folder", "is neither an existing folder nor the form of a hub id"),
    ):
        with pytest.raises(InputError, match=said):
            find_checkpoint(name)
