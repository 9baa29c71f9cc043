from __future__ import annotations

import pytest

from pruning.models.geometry import Geometry
from pruning.shape import LayerShape, ModelShape

GEOMETRY = Geometry(num_layers=2, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=48)


@pytest.mark.parametrize(
    ("shape", "narrowed"),
    [
        ("3x48*2", False),
        ("0x48 3x0", False),
        ("0x0*2", False),
        ("3x48 1x48", True),
        ("2x48 3x48", True),
        ("0x1 3x48", True),
        ("3x48 3x47", True),
    ],
)
def test_a_block_is_narrowed_where_it_keeps_a_part(shape: str, narrowed: bool) -> None:
    assert GEOMETRY.narrowed(ModelShape.parse(shape)) is narrowed


def test_a_shape_of_another_model() -> None:
    assert GEOMETRY.problems(ModelShape.parse("3x48 0x0")) == []
    assert GEOMETRY.problems(ModelShape.parse("3x48*3")) == ["it has 3 layers, the model 2"]
    assert GEOMETRY.problems(ModelShape.parse("4x48 3x49")) == [
        "layer 0 has 4 KV heads and 48 MLP channels, the model's have 3 and 48",
        "layer 1 has 3 KV heads and 49 MLP channels, the model's have 3 and 48",
    ]


def test_sizes_of_parts() -> None:
    """Of 2 KV heads with 2 queries of 8 channels each, and 5 MLP channels."""
    layer = LayerShape(2, 5)
    sizes = {"q": 32, "k": 16, "v": 16, "gate": 5, "up": 5, "down": 5}
    assert {part: GEOMETRY.size(part, layer) for part in sizes} == sizes  # type: ignore[arg-type]
    assert (GEOMETRY.channels_per_kv_head, GEOMETRY.attention_channels) == (16, 48)
