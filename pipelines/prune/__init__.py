"""`python -m pipelines.prune`: one search, and what the configuration asks for after it."""
