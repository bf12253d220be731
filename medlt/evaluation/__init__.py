"""Controlled comparison of training sets: one classifier, equal steps, duplicated real images as the control."""
