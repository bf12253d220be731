"""What a run trained on Stable Diffusion: known by its hashes when it is found again, and put where the user looks."""

from __future__ import annotations

from pathlib import Path

from medlt.diffusion.stable.files import read_json
from medlt.diffusion.stable.load import StableDiffusion
from medlt.types import InputError

FILES = "files.json"  # SHA-256 of each file of the model that is sampled
INDEX = {"full": "model_index.json", "lora": "pytorch_lora_weights.safetensors"}


def require_free(home: Path, train: str) -> None:
    """Raises InputError, before anything is trained, where its result could not be put."""
    if home.is_file() or (train == "full" and home.is_dir() and any(home.iterdir())):
        raise InputError(f"{home} is in the way of what this run trains; move it away and run again")


def own(model: StableDiffusion, folder: Path, home: Path) -> StableDiffusion:
    """The model, found at `home`. Raises InputError unless it is what this run wrote, on the same base."""
    known = folder / FILES
    if not known.is_file() or read_json(known) != model.files:
        raise InputError(f"{home}, or the model under it, is not what this run trained; move it away and run again")
    return model


def put(place: Path, home: Path, train: str) -> None:
    """Move it to where the user finds it; an adapter may lie beside other files."""
    if train == "full":
        place.rename(home)
        return
    home.mkdir(exist_ok=True)
    (place / INDEX[train]).replace(home / INDEX[train])
