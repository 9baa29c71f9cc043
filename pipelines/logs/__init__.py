"""`multipruner logs`: what a job wrote."""
