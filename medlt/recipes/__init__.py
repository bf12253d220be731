"""Recipes: one module per command. Each has `main(config, progress)`, which returns the run folder."""
