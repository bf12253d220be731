"""Settings of a run for someone who gives none: by what the collection has, and by what the machine can do.

On a CPU networks and steps are those of the config dicom_folder/fusion. A GPU gets larger images and longer training.
A small collection gets fewer steps: to see an image hundreds of times takes long, and teaches a denoiser to copy it.
On a CPU, a collection with fewer than QUICK_BELOW train images gets the settings of dicom_folder/quick, at 64 px: a
first run ends in minutes, with blurred images. It uses one thread: networks so small gain little from more, and lose
much where other programs use the cores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medlt.api.collection import Collection
from medlt.config import Targets, TrainedCodec, UNetConfig, catalogue
from medlt.remote import AnyFile, RemoteFile
from medlt.types import InputError

STEP = 32
"""Image sizes are multiples of it, so that every codec and denoiser of the defaults divides them."""
SMALLEST = 32
LEAST = 20
"""Train positives that each tail finding of a small collection is filled to, at least."""
PROBED = 8
"""Images whose size is read."""

CPU, QUICK = "dicom_folder/fusion", "dicom_folder/quick"
"""Shipped configs that a CPU takes its networks and steps from."""
QUICK_BELOW = 300
"""Train images below which a CPU uses QUICK."""
GPU: dict[str, Any] = {
    "size": 256,
    "codec": {"kind": "train", "width": 64, "levels": 4, "steps": 4000, "batch_size": 16},
    "denoiser": {"kind": "unet", "width": 128, "levels": 3, "steps": 8000, "batch_size": 64},
    "classifier": {"size": 128, "steps": 1000, "batch_size": 64},
}
EPOCHS = {"codec": 40, "denoiser": 100}
"""How often a training sees each train image, at most."""
BATCH_SIZE = {
    "codec": TrainedCodec.model_fields["batch_size"].default,
    "denoiser": UNetConfig.model_fields["batch_size"].default,
}
FEWEST = {"codec": 400, "denoiser": 800}
"""Steps of a training, however small the collection."""


@dataclass(frozen=True)
class Machine:
    """What a run computes on: a torch device, and the precision of a denoiser's training."""

    device: str
    precision: str


def machine(given: Mapping[str, Any]) -> Machine:
    """Return the device of the caller's settings, else this machine's, and the best precision on it. Imports torch."""
    device = str(given["device"]) if "device" in given else _device()
    return Machine(device, _precision(device))


def plain_machine(given: Mapping[str, Any]) -> Machine:
    """Return a machine that every setting fits, without the import of torch."""
    return Machine(str(given.get("device", "cpu")), "fp32")


def defaults(collection: Collection, given: Mapping[str, Any], on: Machine) -> dict[str, Any]:
    """Return a config's tree without output_dir and data. `given`: the caller's settings, which decide some of them.

    Those of a private run depend on its public number of patients, and on nothing of the collection.
    """
    device, private = on.device, given.get("privacy") is not None
    public = _section(given, "privacy").get("patients")
    known = public if isinstance(public, int) else 0
    train = known if private else int((collection.manifest.rows["split"] == "train").sum())
    gpu = device.startswith("cuda")
    quick = not gpu and train < QUICK_BELOW
    usual = GPU if gpu else _shipped(QUICK if quick else CPU)
    kind = _section(given, "denoiser").get("kind", "unet")
    codec, unet = (usual[name] if quick else _steps(usual[name], train, name) for name in ("codec", "denoiser"))
    denoiser = {**unet, "precision": on.precision} if kind == "unet" else {"kind": kind}
    size = given.get("size")
    if not isinstance(size, int):
        size = usual["size"] if private else image_size(collection, usual["size"])
    return {
        "method": {"kind": "noise" if private else "fusion"},
        "size": size,
        "device": device,
        "precision": "bf16" if gpu else "fp32",
        "threads": 1 if quick else cores(),
        "skip_unreadable": True,
        **({"sparse": usual["sparse"]} if "sparse" in usual else {}),
        "codec": _codec(given, codec),
        "denoiser": denoiser if private else {**denoiser, "balance": "inverse_sqrt"},
        "targets": {} if private else _targets(collection, _section(given, "targets")),
        "classifier": {**usual["classifier"], "size": min(size, usual["classifier"]["size"])},
    }


def is_quick(collection: Collection, device: str) -> bool:
    """Return whether the collection gets the settings of QUICK on this device."""
    return not device.startswith("cuda") and int((collection.manifest.rows["split"] == "train").sum()) < QUICK_BELOW


def quick_section(name: str) -> dict[str, Any]:
    """Return a section of QUICK. Its comparison takes minutes on a CPU, and is enough to try; a verdict needs more."""
    section: dict[str, Any] = yaml.safe_load(catalogue.path(QUICK).read_text())[name]
    return section


def _shipped(name: str) -> dict[str, Any]:
    """Return the sizes and trainings of a shipped config."""
    tree: dict[str, Any] = yaml.safe_load(catalogue.path(name).read_text())
    own: dict[str, Any] = {
        section: tree[section] for section in ("size", "codec", "sparse", "classifier") if section in tree
    }
    decided = ("balance", "precision")  # by `defaults`
    return {**own, "denoiser": {key: value for key, value in tree["denoiser"].items() if key not in decided}}


def _steps(usual: Mapping[str, Any], images: int, name: str) -> dict[str, Any]:
    """Return the section of a training, with fewer steps where there are few train images."""
    batch_size = usual.get("batch_size") or BATCH_SIZE[name]
    enough = max(FEWEST[name], EPOCHS[name] * images // batch_size)
    return {**usual, "steps": min(usual["steps"], enough)}


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of the settings; empty where it is missing or no mapping, which the config then reports."""
    section = given.get(name)
    return section if isinstance(section, Mapping) else {}


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision(device: str) -> str:
    """Return bf16 where the device computes in it, else fp32."""
    import torch

    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _codec(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checkpoint's own autoencoder for a Stable Diffusion of a folder, else one that is trained here."""
    model = _section(_section(given, "denoiser"), "model")
    if model.get("path") and Path(str(model["path"])).expanduser().is_dir():
        return {"kind": "folder", "path": str(model["path"])}
    return dict(usual)


def _targets(collection: Collection, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much to fill: in a small collection, up to the rarest finding that is not tail."""
    if "count" in given or "multiplier" in given:
        return {}
    rules = {"tail_below": Targets().tail_below, "head_above": Targets().head_above}
    rules |= {name: value for name, value in given.items() if name in rules and isinstance(value, int)}
    summary = collection.summary(**rules)
    others = summary.findings.loc[summary.findings["group"] != "tail", "train"]
    if (summary.findings["train"] > rules["head_above"]).any() or others.empty:
        return {"count": rules["tail_below"]}
    return {"count": max(LEAST, int(others.min()))}


def image_size(collection: Collection, largest: int) -> int:
    """Return the side of the square images, px: `largest`, or less where the images themselves are smaller."""
    uids = [str(uid) for uid in collection.manifest.rows.index[:PROBED]]
    sides = [side for uid in uids if (side := _side(collection.manifest.file(uid)))]
    side = max(sides, default=largest)
    return max(SMALLEST, min(largest, side // STEP * STEP))


def _side(file: AnyFile) -> int:
    """Return the longer side of an image from its header, px; 0 where that cannot be read."""
    from PIL import Image

    if isinstance(file, RemoteFile):
        return _remote_side(file)
    try:
        with Image.open(file) as image:
            return int(max(image.size))
    except (OSError, ValueError, Image.DecompressionBombError):
        pass
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return max(int(header.Rows), int(header.Columns))
    except Exception:  # any damage: the run itself names unreadable files
        return 0


def _remote_side(file: RemoteFile) -> int:
    """Return the longer side of an image at a URL, which is read whole; 0 where it cannot be read."""
    from medlt.data.images import image_shape

    try:
        return max(image_shape(file))
    except InputError:  # the run itself names unreadable files
        return 0
