"""Data sets of the Hugging Face hub, and what to do where it does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_S = 3.0
"""How long the hub is waited for before a data set is asked for."""


def load_hub_dataset(path: str, **options: Any) -> Any:
    """`datasets.load_dataset`, from the local cache alone where the hub does not answer: each
    request that `datasets` makes in vain is made again for half a minute.

    Raises:
        OSError, ValueError, RuntimeError: as `datasets` does.
    """
    import datasets  # seconds to import
    from huggingface_hub import constants

    if constants.is_offline_mode() or _hub_answers():
        return datasets.load_dataset(path, **options)
    with _offline():
        try:
            return datasets.load_dataset(path, **options)
        except OSError as error:
            raise ConnectionError(f"{constants.ENDPOINT} does not answer") from error


def _hub_answers() -> bool:
    """Whether it says anything at all within `ANSWER_S`."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception:  # noqa: BLE001 - whatever kind of client it has, and however it failed
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1, which both packages read once, when they are imported."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
