"""Gemma 3 270M, pruned by four methods."""
