"""Lazy selection against every candidate scored."""
