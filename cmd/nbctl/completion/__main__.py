"""Writes the completion files again, after a change of the parsers."""

from nbctl.completion import rewrite

rewrite()
