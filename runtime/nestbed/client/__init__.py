"""The client library for nestbedd's API."""
