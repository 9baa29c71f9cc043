"""The shape of a run against its controls, on text that it has not seen."""
