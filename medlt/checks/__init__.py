"""Checks that reject synthetic images: sanity, near copies, labels."""
