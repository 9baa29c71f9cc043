"""`python -m pipelines.solve`: other shapes from the table that an allocation measured."""
