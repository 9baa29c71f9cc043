"""MultiPruner from Python: `prune` a model, `sweep`, `open` what an earlier command left.

The commands `multipruner prune` and so on do the same, with the same options, and leave the same
files. Importing this is quick: what computes is imported when it is called.
"""

from multipruner.commands import open, prune, sweep  # noqa: A004 - as gzip.open
from multipruner.points import Sweep
from multipruner.run import Picture, Run
from pruning.errors import InputError

__all__ = ["InputError", "Picture", "Run", "Sweep", "open", "prune", "sweep"]
