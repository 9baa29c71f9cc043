"""Undoes the editable installation of the project, as `sitecustomize` of a node without it."""

import sys

sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if "__editable__" not in str(getattr(finder, "__module__", ""))
]
