"""`python -m pipelines.sweep`: one search for every point of a grid, on one pool of evaluators."""
