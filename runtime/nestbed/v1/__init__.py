"""The API of nestbed, generated from proto/nestbed/v1; never edited."""
