"""Nodes inside virtual machines: names that are paths, and passing calls on to the node a path leads to."""
