"""What repairs a narrowed block: the weights that stay are refitted to what it returned."""
