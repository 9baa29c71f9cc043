"""`python -m pipelines.recover`: a short training that gives back what pruning took."""
