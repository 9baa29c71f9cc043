"""The options of a search of the tiny model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

SETTINGS = {
    "model.dtype": "float32",
    "calibration": "tokens",
    "calibration.num_block_samples": "8",
    "calibration.num_width_samples": "6",
    "calibration.num_heldout_samples": "4",
    "calibration.sequence_length": "32",
    "calibration.batch_size": "4",
    "search.target_ratio": "0.25",
    "search.distribution": "[40,40,20]",
    "search.mlp_group_channels": "16",
}
"""All three stages: about ten steps in a second."""

LONG = ("search.target_ratio=0.4", "search.mlp_group_channels=8")
"""Changes of them for more steps."""

DEAD_END = ("search.target_ratio=0.53", "search.distribution=[50,50,0]")
"""Changes with which some paths reach the target, and that of the tiny model does not."""

LAZY = (
    "search.selection=lazy",
    "search.lazy.wave_size=1",
    "search.lazy.tolerance=0",
    "search.lazy.rescore_every=20",
    "search.lazy.near_layers=0",
)
"""So lazy that with `LONG` most steps of the tiny model leave something out."""


def tiny_search(checkpoint: Path, token_file: Path, *changes: str) -> list[str]:
    """`changes` take the place of the options with the same name."""
    options = (
        SETTINGS
        | {"model.path": str(checkpoint), "calibration.path": str(token_file)}
        | dict(change.split("=", 1) for change in changes)
    )
    return effective([f"{name}={value}" for name, value in options.items()])


def effective(words: Sequence[str]) -> list[str]:
    """Without the MLP group of `SETTINGS` where the last distribution of these words gives MLPs
    nothing, since options that do nothing are refused.
    """
    shares = [word for word in words if word.startswith("search.distribution=")][-1:]
    group = f"search.mlp_group_channels={SETTINGS['search.mlp_group_channels']}"
    no_mlp = any(re.search(r"=\[[^,]+,0,", each) for each in shares)
    return [word for word in words if not (no_mlp and word == group)]


def places(folder: Path) -> list[str]:
    """Evaluators in the process of the command; store and MLflow in this folder."""
    return [
        "cluster=inline",
        f"store.url=sqlite:///{folder}/scores.db",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]
