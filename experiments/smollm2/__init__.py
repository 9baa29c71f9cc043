"""SmolLM2-135M, dense and pruned: text, zero-shot accuracy, speed."""
