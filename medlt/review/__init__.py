"""Reader review: which images are read, the local page, the answers and what they show."""
