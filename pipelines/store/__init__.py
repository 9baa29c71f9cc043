"""Scores and answers that outlive the run which computed them."""
