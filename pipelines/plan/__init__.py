"""`python -m pipelines.plan`: what a search would take, from the model's configuration alone."""
