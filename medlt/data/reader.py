"""A MONAI reader of radiographs, and the dict transform that loads with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys, SpaceKeys

from medlt.data.dicom.guard import read_bytes
from medlt.data.dicom.read import radiograph_in
from medlt.data.images import as_unit, kind_of, levels_in
from medlt.remote import AnyFile, as_file
from medlt.types import InputError

Loaded: TypeAlias = tuple[np.ndarray, tuple[float, float] | None]
"""Pixels float32 [H,W] in [0,1], and the spacing (row, column) in mm, None if unknown."""


class RadiographReader(ImageReader):  # type: ignore[misc]
    """MONAI reader of DICOM, PNG, JPEG and NIfTI files as one image, float32 [H,W] in [0,1], upright, never mirrored.

    The content decides the format (`read_image`). The axes are (row, column); MONAI's own readers return (column, row).
    The affine matrix of the metadata has the pixel spacing of a DICOM file, (row, column) in mm, so that `Spacingd` can
    resample; it is the unit matrix if the spacing is unknown, and `spacing_known` is False. The metadata contains no
    other tag.

    Examples:
        >>> load = monai.transforms.LoadImaged("image", reader="medlt.data.reader.RadiographReader")
    """

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Return True: radiographs come under any name, also without a suffix."""
        return True

    def read(self, data: Sequence[str | AnyFile] | str | AnyFile, **kwargs: Any) -> Loaded:
        """Return pixels and spacing of one file. Raises Unreadable (an InputError); InputError for several files."""
        paths = [as_file(one) for one in ensure_tuple(data)]
        if len(paths) != 1:
            raise InputError(f"a radiograph is one file, not {len(paths)}; give one path for each image")
        raw = read_bytes(paths[0])
        if kind_of(raw[:2048]) != "dicom":
            return as_unit(levels_in(raw, paths[0])), None
        radiograph = radiograph_in(raw, paths[0])
        return radiograph.pixels, radiograph.spacing

    def get_data(self, img: Loaded) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the pixels, and the metadata that MONAI needs."""
        pixels, spacing = img
        affine = np.diag([*(spacing or (1.0, 1.0)), 1.0, 1.0])
        return pixels, {
            MetaKeys.AFFINE.value: affine,
            MetaKeys.ORIGINAL_AFFINE.value: affine.copy(),
            MetaKeys.SPATIAL_SHAPE.value: np.array(pixels.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM.value: float("nan"),
            MetaKeys.SPACE.value: SpaceKeys.RAS.value,
            "spacing_known": spacing is not None,
        }


class LoadRadiographd(MapTransform):  # type: ignore[misc]
    """Dict transform like MONAI's LoadImaged: the keys hold paths, and then images, MetaTensor [1,H,W] in [0,1].

    LoadImaged with `RadiographReader` gives the same images. But it tries its other readers on a file that this one
    refuses, so that a damaged or foreign file may come out mirrored about its diagonal. Raises Unreadable (an
    InputError) for such a file.
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        super().__init__(keys)
        self.reader = RadiographReader()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self._image(data[key]) for key in self.keys}}

    def _image(self, path: str | AnyFile) -> MetaTensor:
        pixels, metadata = self.reader.get_data(self.reader.read(path))
        return EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(pixels, metadata))
