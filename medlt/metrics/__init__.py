"""Metrics of classifiers, of images and of experiments, and their intervals."""
