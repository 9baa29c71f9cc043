from __future__ import annotations

from types import SimpleNamespace

import pytest

from pruning.models.geometry import Geometry, factor_bytes, gram_bytes
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


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {"num_key_value_heads": 3, "head_dim": 16, "intermediate_size": 100},
            Geometry(2, kv_heads=3, queries_per_kv_head=2, head_dim=16, mlp_channels=100),
        ),
        (
            {"n_inner": 100},
            Geometry(2, kv_heads=6, queries_per_kv_head=1, head_dim=8, mlp_channels=100),
        ),
        (
            {"num_key_value_heads": None, "head_dim": None, "n_inner": None},
            Geometry(2, kv_heads=6, queries_per_kv_head=1, head_dim=8, mlp_channels=192),
        ),
    ],
)
def test_sizes_of_a_configuration(told: dict[str, int | None], expected: Geometry) -> None:
    """As GPT-2 has it where it says nothing: 4 MLP channels for each of the hidden size."""
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=6, hidden_size=48, **told)
    assert Geometry.of(config) == expected  # type: ignore[arg-type]
    assert expected.dense.text == f"{expected.kv_heads}x{expected.mlp_channels}*2"


@pytest.mark.parametrize(("channels", "largest"), [(48, 48), (100, 100), (20, 48)])
def test_bytes_of_matrices_of_one_layer(channels: int, largest: int) -> None:
    """48 channels flow into `o_proj`. Of float64: both Gram matrices; and two factors kept, a third
    made from its Gram matrix in float32 and float64.
    """
    geometry = Geometry(2, kv_heads=3, queries_per_kv_head=2, head_dim=8, mlp_channels=channels)
    assert gram_bytes(geometry) == 8 * 48 * 48 + 8 * channels * channels
    assert factor_bytes(geometry) == (8 + 8 + 4 + 8 + 8) * largest * largest
