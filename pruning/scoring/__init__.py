"""A shape on a live model, and the NLL of many candidates."""
