from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pruning.errors import InputError
from pruning.models.find import find_checkpoint
from pruning.models.stored_weights import check_finite


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


@pytest.mark.parametrize(
    ("num_wrong", "named"), [(1, "w0"), (3, "w0, w1, w2"), (4, "w0, w1, w2 and 1 more")]
)
def test_values_that_are_not_finite_are_named(num_wrong: int, named: str, tmp_path: Path) -> None:
    """Three of them. A tensor without values, and one of numbers, has nothing wrong."""
    wrong = {f"w{index}": torch.tensor([[torch.inf, torch.nan][index % 2]]) for index in range(4)}
    right = {"none": torch.zeros(0), "ids": torch.tensor([3]), "one": torch.ones(1)}
    path = tmp_path / "model.safetensors"
    save_file(right, path)
    check_finite(path)
    save_file(right | dict(list(wrong.items())[:num_wrong]), path)
    with pytest.raises(InputError) as raised:
        check_finite(path)
    assert f"NaN or infinite values in {named} of {path}; expected" in str(raised.value)
