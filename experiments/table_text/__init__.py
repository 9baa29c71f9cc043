"""How well a table chooses on text that it has not seen."""
