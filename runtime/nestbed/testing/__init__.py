"""Fakes and contract suites, shipped so that every runtime can be held to the contract."""
