"""Other tools' topology files: read into the words of a vtopo, and written from one. What has no counterpart is refused by its name."""
