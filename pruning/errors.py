"""Errors that a user can act on, and faults of a run. Both are picklable: they cross processes."""


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message names the field, what was given, what is allowed and what to do.
    """


class TargetNotReached(InputError):
    """A stage has no candidate left although its target is not met.

    Everything up to here is kept.
    """


class ScoringError(RuntimeError):
    """A measurement failed in a way that another try would not change, such as every candidate
    scoring NaN.
    """


class ExportError(RuntimeError):
    """A folder was written and does not compute what the masked model does."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
