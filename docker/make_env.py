"""`make stack-env`: makes docker/.env, with a random password for each name that
docker/.env.example leaves empty. A file that is there stays: the volumes know its passwords.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

_NUM_BYTES = 32


def fill(example: str) -> str:
    """The text with `NAME=` lines filled, each with 256 random bits in hexadecimal."""
    return re.sub(
        r"^(\w+)=$", lambda name: name[0] + secrets.token_hex(_NUM_BYTES), example, flags=re.M
    )


def main(folder: Path) -> int:
    """Writes `.env` beside `.env.example`, for this user's eyes alone; returns the exit status."""
    path = folder / ".env"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(
            f"{path} is there already. The database and MLflow took their passwords from it when "
            "their volumes were made; remove it only together with them\n"
        )
        return 2
    with os.fdopen(descriptor, "w") as file:
        file.write(fill((folder / ".env.example").read_text()))
    sys.stdout.write(f"{path}: made, readable by you alone\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
