"""A MONAI dict transform that swaps real images with synthetic ones while a classifier is trained."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type

from medlt.api.run import Run, load
from medlt.data.images import read_image
from medlt.data.squares import square
from medlt.names import did_you_mean
from medlt.types import InputError


class RandSyntheticSwapd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Swaps the image and the label vector of an item, with probability `prob`, for those of a synthetic image.

    Put it after the image is loaded and squared, and before augmentations. It draws from its own random state: seed it
    with `set_random_state`; MONAI's DataLoader gives each worker a state of its own. An item that is not swapped passes
    unchanged, NaN labels too; the label vector of a synthetic image keeps its soft labels and its NaN.

    Args:
        keys: the key of the image [C,H,W], H = W, and the key of the label vector [K] in the order of `run.findings`.
        run: a finished `Run` or its folder, whose synthetic images are drawn.
        prob: probability of a swap, in [0,1].
        swap: "tail" swaps only items that are positive for a finding with synthetic images, for an image that was made
            for that finding; "any" swaps every item, for a synthetic image of a finding drawn uniformly, so that all
            rare findings become equally frequent among the swapped.
        findings: draw only images made for these; default: all that the run has images of.
        allow_missing_keys: as in MONAI.

    An item's keys "uid", "weight" and "synthetic" are set to those of the synthetic image, where the item has them.

    Raises:
        InputError: for a run without synthetic images, or a finding without any.

    Examples:
        >>> swap = medlt.RandSyntheticSwapd(("image", "label"), run, prob=0.3)
        >>> item = swap(run.dataset(synthetic=False)[0])
    """

    def __init__(
        self,
        keys: KeysCollection,
        run: Run | str | Path,
        prob: float = 0.1,
        swap: Literal["tail", "any"] = "tail",
        findings: tuple[str, ...] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 2:
            raise InputError(f"keys: {self.keys} has {len(self.keys)} entries; give the image's key and the label's")
        if swap not in ("tail", "any"):
            raise InputError(f"swap: {swap!r} is not valid; use tail or any")
        self.swap = swap
        made = (run if isinstance(run, Run) else load(run)).images()
        self.findings = made.manifest.findings
        self._labels = made.manifest.labels()
        self._uids, self._files = [str(uid) for uid in made.rows.index], [str(path) for path in made.paths]
        weight = made.rows.get("weight")
        self._weights = np.ones(len(made)) if weight is None else weight.to_numpy(float)
        self._made_for = _rows_by_finding(made.rows.get("finding"), self.findings, findings)
        self._draw = 0.0, 0.0

    def randomize(self, data: Any) -> None:
        """Draw whether to swap, and for what."""
        super().randomize(None)
        self._draw = float(self.R.random()), float(self.R.random())  # always two, so that items stay in step

    def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
        item = dict(data)
        image_key, label_key = self.keys
        if self.allow_missing_keys and not {image_key, label_key} <= set(item):
            return item
        if randomize:
            self.randomize(None)
        row = self._row(item[label_key]) if self._do_transform else None
        if row is None:
            return item
        item[image_key] = self._image(row, item[image_key])
        item[label_key] = convert_to_dst_type(torch.from_numpy(self._labels[row].copy()), item[label_key])[0]
        own = {"uid": self._uids[row], "synthetic": True}
        item |= {name: value for name, value in own.items() if name in item}
        if "weight" in item:
            item["weight"] = convert_to_dst_type(torch.tensor(self._weights[row]), item["weight"])[0]
        return item

    def _row(self, label: Any) -> int | None:
        """Return the row of the synthetic image that takes an item's place; None where none fits."""
        vector = np.asarray(torch.as_tensor(label), np.float32)
        names = list(self._made_for)
        if self.swap == "tail":
            names = [name for name in names if vector[self.findings.index(name)] >= 0.5]
        if not names:
            return None
        first, second = self._draw
        rows = self._made_for[names[int(first * len(names))]]
        return int(rows[int(second * len(rows))])

    def _image(self, row: int, like: Any) -> Any:
        """Return the synthetic image with the shape, type and device of `like`."""
        side, channels = like.shape[-1], like.shape[0]
        pixels = torch.from_numpy(square(read_image(Path(self._files[row])), side))[None].expand(channels, -1, -1)
        if not isinstance(like, MetaTensor):
            return convert_to_dst_type(pixels.contiguous(), like)[0]
        meta = {"filename_or_obj": self._files[row], "synthetic": True}
        return MetaTensor(pixels.contiguous().to(like.device, like.dtype), meta=meta)


def _rows_by_finding(made_for: Any, known: tuple[str, ...], wanted: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """Return the row numbers of each finding's synthetic images. Raises InputError for a finding without any."""
    values = np.asarray([] if made_for is None else made_for, dtype=object)
    rows = {name: np.flatnonzero(values == name) for name in known}
    there = {name: numbers for name, numbers in rows.items() if len(numbers)}
    if not there:
        raise InputError("the run has no synthetic images; give one of which images passed the checks")
    if strange := [name for name in wanted or () if name not in there]:
        close = did_you_mean(strange[0], there) or ";"
        raise InputError(f"no synthetic image was made for {strange[0]!r}{close} there are {', '.join(there)}")
    return {name: there[name] for name in wanted or there}
