"""Entry of `python -m pipelines.status`."""

from __future__ import annotations

from pipelines.status.command import main

if __name__ == "__main__":
    main()
