"""Searches over shapes: they propose and observe, and never evaluate."""
