from __future__ import annotations

from pathlib import Path

import pytest

from pruning.errors import InputError
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
