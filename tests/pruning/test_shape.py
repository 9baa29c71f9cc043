from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import InputError
from pruning.export.authors_config import read_authors_config, write_authors_config
from pruning.shape import Kind, LayerShape, ModelShape, Removal, Resize

DENSE = ModelShape.dense(4, 3, 48)
shapes = st.lists(
    st.builds(LayerShape, st.integers(0, 9), st.integers(0, 50)), min_size=1, max_size=12
).map(lambda layers: ModelShape(tuple(layers)))


@given(shapes)
def test_text_and_json_round_trip(shape: ModelShape) -> None:
    assert ModelShape.parse(shape.text) == shape
    assert ModelShape.from_json(shape.to_json()) == shape


@given(shapes, shapes)
def test_equal_digest_means_equal_shape(one: ModelShape, other: ModelShape) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_a_digest_is_of_the_text() -> None:
    digest = ModelShape.parse("3x48*2 0x48 3x48").digest
    assert digest == hashlib.sha256(b"3x48*2 0x48 3x48").hexdigest()[:32]
    assert len(digest) == 32


def test_equal_shapes_are_one_key() -> None:
    """However they were made, and nothing but the layers is seen of them or taken."""
    made = DENSE.without(Removal("mlp", 0, 0))
    assert {made: 1}[ModelShape.parse("3x0 3x48*3")] == 1
    assert hash(made) == hash(ModelShape(tuple(made.layers))) != hash(DENSE)
    assert made != DENSE
    assert repr(ModelShape.dense(1, 3, 48)) == (
        "ModelShape(layers=(LayerShape(kv_heads=3, mlp_channels=48),))"
    )
    more: Any = (0,)
    with pytest.raises(TypeError):
        ModelShape(DENSE.layers, *more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Removal("attention", 2, 0), "attention block of layer 2"),
        (Removal("mlp", 0, 0), "mlp block of layer 0"),
        (Removal("attention_heads", 3, 1), "attention_heads of layer 3 to 1"),
        (Removal("mlp_channels", 1, 5), "mlp_channels of layer 1 to 5"),
        (Resize(1, "mlp_channels", 8), "mlp_channels of layer 1 at 8"),
    ],
)
def test_a_change_is_said_in_words(change: Removal | Resize, said: str) -> None:
    assert str(change) == said


def test_text_counts_runs() -> None:
    assert DENSE.without(Removal("attention", 2, 0)).text == "3x48*2 0x48 3x48"


def test_without_changes_one_layer() -> None:
    shape = DENSE.without(Removal("mlp_channels", 1, 32)).without(Removal("attention_heads", 3, 2))
    assert [(layer.kv_heads, layer.mlp_channels) for layer in shape.layers] == [
        (3, 48),
        (3, 32),
        (3, 48),
        (2, 48),
    ]
    assert DENSE.first_difference(shape) == 1
    assert shape.first_difference(shape) == 4
    assert shape.first_difference(DENSE.without(Removal("mlp_channels", 1, 32))) == 3


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_removed_block_leaves_nothing(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"^removing the {kind} block leaves 0, not 3$"):
        Removal(kind, 1, 3)


def test_a_change_is_none_a_removal_or_another_size() -> None:
    shape = ModelShape.parse("3x48 1x16 3x0 3x48")
    assert shape.changed(None) == shape
    assert shape.changed(Removal("mlp", 3, 0)).text == "3x48 1x16 3x0*2"
    assert shape.changed(Resize(1, "kv_heads", 2)).text == "3x48 2x16 3x0 3x48"
    assert shape.changed(Resize(1, "mlp_channels", 8)).text == "3x48 1x8 3x0 3x48"


def test_a_removal_must_take_something() -> None:
    with pytest.raises(ValueError, match="takes nothing away"):
        DENSE.without(Removal("mlp_channels", 1, 48))


@pytest.mark.parametrize(
    "removal",
    [
        Removal("attention", 2, 0),
        Removal("mlp", 0, 0),
        Removal("mlp_channels", 1, 5),
        Removal("attention_heads", 3, 1),
    ],
)
def test_removal_round_trip(removal: Removal) -> None:
    assert Removal.from_json(removal.to_json() | {"kind": removal.kind}) == removal


def test_not_a_shape() -> None:
    with pytest.raises(InputError, match="not a shape: 'banana' in '3x48 banana'"):
        ModelShape.parse("3x48 banana")
    with pytest.raises(InputError, match="not a shape file"):
        ModelShape.from_json({"layers": [{"kv": 1}]})


def test_authors_config_round_trip() -> None:
    removals = [
        Removal("attention", 2, 0),
        Removal("mlp", 0, 0),
        Removal("mlp_channels", 1, 32),
        Removal("mlp_channels", 1, 16),
        Removal("attention_heads", 3, 2),
    ]
    shape = DENSE
    for removal in removals:
        shape = shape.without(removal)
    config = write_authors_config(shape, DENSE, removals, channels_per_kv_head=16)
    assert config["pruned_attn_idx"] == [2]
    assert config["pruned_mlp_idx"] == [0]
    assert config["pruned_attn_width"] == {"0": 48, "1": 48, "2": 48, "3": 32}
    assert config["pruned_mlp_width"] == {"0": 48, "1": 16, "2": 48, "3": 48}
    assert read_authors_config(config, DENSE, channels_per_kv_head=16) == shape


def test_authors_config_with_offset_layers() -> None:
    config = {
        "pruned_attn_idx": [],
        "pruned_mlp_idx": [],
        "pruned_attn_width": {},
        "pruned_mlp_width": {"4": 48, "5": 32, "6": 48, "7": 48},
    }
    assert read_authors_config(config, DENSE, channels_per_kv_head=16) == DENSE.without(
        Removal("mlp_channels", 1, 32)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruned_attn_width": {"0": 50}}, "layer 0 has 50 query channels"),
        ({"pruned_mlp_width": {"0": 64}}, "64 MLP channels"),
        ({"pruned_attn_idx": [9]}, r"layers \[9\]"),
        ({"pruned_mlp_width": {"0": 48, "4": 48}}, r"widths of layers \[4\]"),
    ],
)
def test_authors_config_of_another_model(change: dict[str, object], message: str) -> None:
    config = {
        "pruned_attn_idx": [],
        "pruned_mlp_idx": [],
        "pruned_attn_width": {},
        "pruned_mlp_width": {},
    } | change
    with pytest.raises(InputError, match=message):
        read_authors_config(config, DENSE, channels_per_kv_head=16)


def test_authors_config_without_a_key() -> None:
    with pytest.raises(InputError, match="pruned_attn_idx"):
        read_authors_config({}, DENSE, channels_per_kv_head=16)


@pytest.mark.parametrize("sizes", [(-1, 4), (2, -4)])
def test_no_layer_keeps_less_than_nothing(sizes: tuple[int, int]) -> None:
    assert LayerShape(0, 0) == ModelShape.parse("0x0").layers[0]
    with pytest.raises(ValueError, match="both are >= 0"):
        LayerShape(*sizes)
