"""What can go wrong in a job besides what `pruning.errors` and `workers.pool.faults` know."""


class StoreUnavailable(RuntimeError):
    """The store failed after a search had begun. What it confirmed until then is in it."""


class Failed(RuntimeError):
    """Ends a command with status 1: it did what it could, and says what is missing."""
