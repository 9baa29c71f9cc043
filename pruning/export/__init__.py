"""Pruned models as checkpoints that other software opens."""
