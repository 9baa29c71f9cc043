"""Calibration text: from any source to fixed token sequences with a fingerprint."""
