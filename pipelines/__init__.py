"""Recipes: whole jobs as stories, `main(config, progress) -> run folder`, with their YAML beside them."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent


def _finetune() -> Callable[..., Path]:
    main: Callable[..., Path] = import_module("pipelines.finetune").main
    return main


def _fusion() -> Callable[..., Path]:
    main: Callable[..., Path] = import_module("pipelines.fusion").main
    return main


RECIPES: dict[str, Callable[[], Callable[..., Path]]] = {"finetune": _finetune, "fusion": _fusion}
