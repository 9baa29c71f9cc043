from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from pruning.models.find import find_checkpoint


def test_weights_are_checked_without_room_for_them(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = set()
    from_pretrained = PreTrainedModel.from_pretrained.__func__

    def seen(kind: type, *words: object, **options: Any) -> Any:
        devices.update(tensor.device.type for tensor in options["state_dict"].values())
        return from_pretrained(kind, *words, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(seen))
    find_checkpoint(str(checkpoint_folder)).check_weights()
    assert devices == {"meta"}
