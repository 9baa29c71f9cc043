"""`python -m pipelines.evaluate`: benchmarks, perplexity and costs, dense beside pruned."""
