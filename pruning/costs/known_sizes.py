"""Sizes of dense models that were counted before.

Counting imports torch and transformers and builds the model, which takes seconds; what it comes to
is decided by the configuration and by the code that counts.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pruning import costs, models
from pruning.canonical_json import dump_json
from pruning.costs import dense_sizes
from pruning.costs.sizes import AttentionReads, BlockSizes, DenseSizes
from pruning.models.cache import build_once, cache_folder
from pruning.models.families import FAMILIES
from pruning.models.find import configured_folder
from pruning.models.geometry import Geometry

_FILE = "sizes.json"


def sizes_of(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> DenseSizes:
    """Those of the model that a user names; see `pruning.models.find` for the names.

    They are kept in the cache (`cache_folder`) for each content of `config.json`, version of
    transformers and state of this package's own code. Models that bring code of their own are
    counted each time, and so are those of families that are not in the registry.

    Raises:
        InputError: nothing usable is there, or it is no model that can be pruned.
    """
    folder = configured_folder(path, revision)
    place = cache_folder() / "sizes" / _key(folder / "config.json")
    known = None if trust_remote_code else _read(place / _FILE)
    if known is not None:
        return known
    from pruning.models.checkpoint import Checkpoint  # torch and transformers

    config = Checkpoint(folder, trust_remote_code).config()
    sizes = dense_sizes.dense_sizes(config, trust_remote_code=trust_remote_code)
    if not trust_remote_code and sizes.family in FAMILIES.values():
        with suppress(OSError):  # a cache that cannot be written costs time, and nothing else
            build_once(place, lambda scratch: _write(scratch / _FILE, sizes))
    return sizes


def _key(config: Path) -> str:
    """Of everything that decides the counts."""
    digest = hashlib.sha256(config.read_bytes())
    digest.update(version("transformers").encode())
    for package in (costs, models):
        for source in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _write(path: Path, sizes: DenseSizes) -> None:
    fields = asdict(sizes) | {"family": sizes.family.model_type}
    path.write_text(dump_json(fields), encoding="utf-8")


def _read(path: Path) -> DenseSizes | None:
    """None where there is nothing, or nothing whole."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return DenseSizes(
            FAMILIES[fields["family"]],
            Geometry(**fields["geometry"]),
            fields["hidden_size"],
            fields["num_parameters"],
            fields["head_weights"],
            attention=tuple(BlockSizes(**block) for block in fields["attention"]),
            mlp=tuple(BlockSizes(**block) for block in fields["mlp"]),
            reads=tuple(AttentionReads(**layer) for layer in fields["reads"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
