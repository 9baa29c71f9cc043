"""Typed configuration: groups, one schema for each command, and their checks."""
