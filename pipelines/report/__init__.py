"""`python -m pipelines.report`: searches compared on one page."""
