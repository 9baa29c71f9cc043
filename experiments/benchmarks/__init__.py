"""What the design promises, measured on a small real model: `make bench`, or `python -m
experiments.benchmarks NAME` for one.
"""
