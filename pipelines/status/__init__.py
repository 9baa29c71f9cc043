"""`python -m pipelines.status`: what a search is doing right now."""
