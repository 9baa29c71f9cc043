"""A model of three layers, a shape of it, and constraints by name."""

from __future__ import annotations

from pruning.costs.accounting import Accounting
from pruning.search.constraints import (
    Constraint,
    of_shape_constraint,
    whole_attention,
    whole_blocks,
    width_multiple,
)
from pruning.shape import ModelShape
from tests.conftest import tiny_config

ACCOUNTING = Accounting(tiny_config("llama", num_hidden_layers=3))
DENSE, BASE = ACCOUNTING.dense, ModelShape.parse("3x32 2x32 3x24")
CONSTRAINTS: dict[str, list[Constraint]] = {
    "none": [],
    "one width": of_shape_constraint("one_width", 3),
    "multiples of 16": [width_multiple(16)],
    "attention whole": [whole_attention(DENSE)],
    "depth only": [whole_blocks(DENSE)],
    "two": [width_multiple(16), *of_shape_constraint("one_width", 3)],
}
