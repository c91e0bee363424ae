"""nestbedd: the daemon of one node."""
