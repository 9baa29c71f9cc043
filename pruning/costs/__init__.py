"""What a shape costs: counted from the configuration, or measured."""
