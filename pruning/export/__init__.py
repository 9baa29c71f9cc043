"""Pruned models as checkpoints that other software opens."""

FORMAT_NAMES = ("transformers", "decilm", "gguf")
"""`pruning.export.folder.FORMATS` has what each of them is."""
