"""`python -m pipelines.reproduce`: published figures against what this program computes."""
