"""One plug-in of each group of medlt."""
