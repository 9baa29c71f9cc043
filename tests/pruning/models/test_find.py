from __future__ import annotations

from pathlib import Path

import pytest

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
