"""The names of the criteria that order channels; `channel_order` computes them."""

from __future__ import annotations

from typing import Literal

Importance = Literal["activation", "l1", "none"]
