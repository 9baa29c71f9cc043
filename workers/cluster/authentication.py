"""How this process shows its token to a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    Config,
    get_authentication_mode,
)

GIVEN_BY = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
"""Where Ray looks for a token, for messages."""


@contextmanager
def ray_environment(mode: Any, changes: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables and Ray's authentication mode for the time of the context.

    Ray keeps mode and token from before, so both are read anew.
    """
    changes = {
        **changes,
        "RAY_AUTH_MODE": "token" if mode == AuthenticationMode.TOKEN else "disabled",
    }
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        if get_authentication_mode() != mode:
            raise RuntimeError(
                f"Ray's authentication is {get_authentication_mode()}, {mode} was set: Ray "
                f"{ray.__version__} behaves otherwise than 2.60"
            )
        yield
    finally:
        _set(before)


def _set(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
