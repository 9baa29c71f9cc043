"""Training in this process or in one that Ray starts."""
