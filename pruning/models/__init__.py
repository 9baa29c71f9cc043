"""Dense models: families, sizes, checkpoints of every format."""
