"""Evaluators that hold a model and score candidates, and the pools that spread work over them.

The only package that imports Ray.
"""
