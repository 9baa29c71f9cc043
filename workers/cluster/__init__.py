"""The Ray that evaluators run on, and where on it they go."""
