"""Plain classes that hold a model and compute: scores, answers, costs."""
