"""`multipruner stop`: ends a job."""
