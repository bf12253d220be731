"""Classifiers of findings, their training, and class activation maps."""
