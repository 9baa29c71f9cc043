"""What goes first: the order of channels, and the influence of blocks."""
