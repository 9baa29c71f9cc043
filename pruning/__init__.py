"""The domain: shapes of a model, how they are scored, and the greedy search over them.

Knows no Ray, Hydra or MLflow.
"""
