"""Options by the names that they had before: read for one more version, with a line in the log.

`search.layout` is `search.shape_constraint` now. The identity of a run keeps the old name, so that
the folders of both versions go on.
"""

from __future__ import annotations

import logging
from functools import cache

from omegaconf import DictConfig

from pruning.search.settings import ShapeConstraint

log = logging.getLogger(__name__)

LAYOUTS: dict[str, ShapeConstraint] = {"any": "none", "portable": "deployable"}


def with_current_names(config: DictConfig) -> DictConfig:
    """A saved configuration, with the names that its options have now."""
    search = config.get("search")
    if isinstance(search, DictConfig) and "layout" in search:
        search.shape_constraint = constraint_of(search.pop("layout"))
    return config


@cache
def constraint_of(layout: str) -> ShapeConstraint:
    """The shape constraint that a layout was; the log says so once of each."""
    constraint = LAYOUTS[layout]
    log.info("search.layout: %s is read as search.shape_constraint=%s", layout, constraint)
    return constraint
