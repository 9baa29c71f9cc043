"""`python -m pipelines.evaluate`: benchmarks, perplexity and costs, dense and pruned side by side."""
