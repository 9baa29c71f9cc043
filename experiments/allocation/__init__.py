"""Allocation against uniform widths and published shapes: held-out perplexity of three texts."""
