"""Benchmarks and reproductions with their measured results. Nothing that the product imports."""
