"""The commands, each in a folder of its own, and the rooms that they share.

The only package that imports Hydra and MLflow.
"""
