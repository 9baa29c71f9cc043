"""The names of all files that runs leave on disk."""

EVALUATION, EVALUATION_TABLE, EVALUATION_LOG = "evaluation.json", "evaluation.csv", "evaluate.log"
SWEEP, SWEEP_PICTURE, SWEEP_LOG = "sweep.json", "sweep.png", "sweep.log"
VERDICT, REPRODUCE_LOG = "verdict.json", "reproduce.log"
