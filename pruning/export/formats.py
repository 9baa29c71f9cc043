"""The names of the formats; `pruning.export.folder.FORMATS` has what each of them is."""

from __future__ import annotations

FORMAT_NAMES = ("transformers", "decilm", "gguf")
