"""nbctl: the command line of nestbed. ``docs/nbctl.md`` is its reference."""
