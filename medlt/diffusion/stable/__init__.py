"""Stable Diffusion 1.x and 2.x: loading, adapters, saving, and what a prompt becomes."""
