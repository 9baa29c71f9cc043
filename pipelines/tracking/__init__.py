"""MLflow: names, views, and the sender in the background."""
