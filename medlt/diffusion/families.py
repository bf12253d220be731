"""The network families besides Stable Diffusion, and how their saved networks are loaded."""

from __future__ import annotations

from pathlib import Path

from medlt.diffusion.labels import LabelNetwork, LabelUNet, read_settings
from medlt.diffusion.transformer import LabelTransformer
from medlt.types import InputError

FAMILIES: dict[str, type[LabelNetwork]] = {net.family: net for net in (LabelUNet, LabelTransformer)}


def load_label_network(folder: Path) -> LabelNetwork:
    """Return the label-conditional network saved in a folder, in evaluation mode.

    Raises InputError if there is none.
    """
    family, _ = read_settings(folder)
    if family not in FAMILIES:
        raise InputError(f"{folder} contains a network of the unknown family {family!r}; use {' or '.join(FAMILIES)}")
    return FAMILIES[family].load(folder)


def init_from(net: LabelNetwork, folder: Path) -> tuple[str, ...]:
    """Load the weights of a network saved in `folder` into `net`, and return the names of weights that stay unchanged.

    A tensor is loaded if name and shape agree; layers that depend on another list of findings are trained from scratch.
    Raises InputError if `folder` contains no network, one of another family, or one of which less than half fits.
    """
    saved, own = load_label_network(folder), net.state_dict()
    if saved.family != net.family:
        raise InputError(f"init_from: {folder} contains a {saved.family}, the run trains a {net.family}; use the same")
    shared = {name: value for name, value in saved.state_dict().items() if name in own}
    loaded = {name: value for name, value in shared.items() if value.shape == own[name].shape}
    if 2 * sum(value.numel() for value in loaded.values()) < sum(value.numel() for value in own.values()):
        raise InputError(f"init_from: less than half of the denoiser fits {folder}; set the same width and levels")
    net.load_state_dict(loaded, strict=False)
    return tuple(sorted(set(own) - set(loaded)))
