"""Recipes: whole jobs as stories, `main(config, progress) -> run folder`, with their YAML beside them."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent


def job(recipe: str, kind: str = "main") -> Callable[..., Path]:
    """What runs a recipe: its `main`, or its `augment`, which compares nothing."""
    place = "ablation" if recipe == "ablation" else "recipe"
    found: Callable[..., Path] = getattr(import_module(f"pipelines.{place}"), kind)
    return found
