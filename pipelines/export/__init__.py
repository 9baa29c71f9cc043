"""`python -m pipelines.export`: a pruned model as a checkpoint that other software opens."""
