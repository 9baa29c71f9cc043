"""The demo's shape against its controls, on more held-out text than the demo scores."""
