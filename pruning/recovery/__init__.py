"""A short training of a pruned model that gives back what pruning took."""
