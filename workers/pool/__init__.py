"""Many evaluators behind one method: tasks out, results in, faults survived."""
