"""Prints the lowest version of every package that pyproject.toml names, as pip's constraints."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lowest(requirements: list[str]) -> list[str]:
    """`name>=1.2` becomes `name==1.2`; what has no lower bound, such as `name`, is an error."""
    found = []
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:,.*)?", wanted.strip())
        if match is None:
            raise SystemExit(f"{requirement}: no lower bound; write NAME>=VERSION")
        found.append(f"{match[1]}=={match[2]}" + (f"; {marker.strip()}" if marker else ""))
    return sorted(set(found))


def main() -> None:
    """Reads the pyproject.toml of the folder that it is started in."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(name for names in extras for name in names)]
    sys.stdout.write("\n".join(lowest(requirements)) + "\n")


if __name__ == "__main__":
    main()
