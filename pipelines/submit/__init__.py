"""`multipruner submit`: runs a command as a job of a Ray cluster."""
