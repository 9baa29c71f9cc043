"""`python -m pipelines.latency`: how long each block takes at each size, on one device."""
