"""`multipruner jobs`, and what is asked of one job: `logs` and `stop`."""
