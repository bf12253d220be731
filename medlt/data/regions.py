"""Where findings are: masks and boxes of the images of a manifest, by uid and finding.

Columns of the manifest, blank where nothing is known:

    mask_FINDING   path of an 8-bit PNG as large as the image, from the manifest's root; > 0 is the finding
    box_FINDING    list of left, top, right, bottom of each box, as shares of the square image

The square is the image padded on two sides, as `medlt.data.squares.square` pads it. A uid with a mask and boxes of one
finding counts by its mask. `medlt.data.boxes` reads tables of boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medlt.data.columns import BOX, MASK, region_columns
from medlt.data.dicom.guard import read_bytes
from medlt.data.images import image_shape, kind_of, read_picture
from medlt.data.manifest import READERS, Manifest
from medlt.data.mask_files import digest_masks
from medlt.files import digest, digest_bytes
from medlt.remote import AnyFile, digest_of
from medlt.types import InputError

HALF = 0.5
"""Share of a pixel from which on it belongs to a region."""


@dataclass(frozen=True)
class MaskFile:
    """A mask: its file, the image that it belongs to, and the digest of the mask's bytes."""

    path: AnyFile
    image: AnyFile
    content: str


@dataclass(frozen=True, eq=False)
class Regions:
    """Masks and boxes by finding and uid; without arguments there are none.

    files: finding -> uid -> mask; boxes: finding -> uid -> corners [n,4] as shares of the square.
    """

    files: Mapping[str, Mapping[str, MaskFile]] = field(default_factory=dict)
    boxes: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    _fitting: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def of(cls, manifest: Manifest) -> Regions:
        """Return the masks and boxes of a manifest; every mask file is read once, for its digest.

        Raises InputError for a mask that is missing, or that changed since `mask_content` was recorded.
        """
        masks = manifest.masks()
        recorded = manifest.rows["mask_content"] if "mask_content" in manifest.rows else {}
        named = partial(_mask_files, manifest, recorded)
        with ThreadPoolExecutor(READERS) as pool:
            read = dict(zip(masks, pool.map(lambda uid: named(uid, masks[uid]), masks), strict=True))
        files = {
            finding: {uid: row[finding] for uid, row in read.items() if finding in row}
            for finding in region_columns(manifest.rows, manifest.findings, MASK)
        }
        boxes = {
            finding: {str(uid): np.reshape(one, (-1, 4)) for uid, one in manifest.rows[name].dropna().items()}
            for finding, name in region_columns(manifest.rows, manifest.findings, BOX).items()
        }
        return cls(files, boxes)

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings with at least one mask or box."""
        return tuple(name for name in dict.fromkeys((*self.files, *self.boxes)) if self.known(name))

    def known(self, finding: str) -> tuple[str, ...]:
        """Return the uids that have a mask or a box of the finding, masks first."""
        return tuple(dict.fromkeys((*self.files.get(finding, ()), *self.boxes.get(finding, ()))))

    def kind(self, uid: str, finding: str) -> Literal["mask", "box"] | None:
        """Return what says where the finding is in this image."""
        if uid in self.files.get(finding, ()):
            return "mask"
        return "box" if uid in self.boxes.get(finding, ()) else None

    def masks(self, uids: Sequence[str], finding: str, size: int | tuple[int, int]) -> Tensor:
        """Return the share of each cell of the square image that is covered, float32 [B,h,w] in [0,1].

        `size` is one side or (h,w). A uid without mask and box of the finding is NaN everywhere. Raises InputError for
        a mask that is no PNG, has another size than its image, or changed since `of`.
        """
        cells = (size, size) if isinstance(size, int) else size
        covered = torch.full((len(uids), *cells), torch.nan)
        for i, uid in enumerate(uids):
            if (kind := self.kind(uid, finding)) is not None:
                cover = self._mask(uid, finding) if kind == "mask" else box_cover(self.boxes[finding][uid])
                covered[i] = torch.from_numpy(cover.shares(cells))
        return covered

    def pixels(self, uid: str, finding: str, size: int) -> np.ndarray:
        """Return the pixels of the square image that are at least half covered, bool [size,size].

        A finding that half covers none has the pixels that it touches. Raises InputError as `masks`.
        """
        share = self.masks([uid], finding, size)[0].numpy()
        covered: np.ndarray = share >= HALF
        return covered if covered.any() else share > 0

    def check(self) -> None:
        """Raise InputError for the first mask that `masks` would refuse; reads all masks and sizes of their images."""
        every = [(uid, finding) for finding, files in self.files.items() for uid in files]
        with ThreadPoolExecutor(READERS) as pool:
            for _ in pool.map(lambda one: self._mask(*one), every):
                pass

    def digest(self) -> str:
        """Return 16 hex digits over the bytes of all masks and the corners of all boxes."""
        files = {name: {uid: one.content for uid, one in of.items()} for name, of in self.files.items() if of}
        boxes = {name: {uid: one.tolist() for uid, one in of.items()} for name, of in self.boxes.items() if of}
        return digest("regions", files, boxes)

    def _mask(self, uid: str, finding: str) -> Cover:
        """Read one mask, padded to the square."""
        file = self.files[finding][uid]
        raw = read_bytes(file.path)
        if digest_bytes(raw) != file.content:
            raise InputError(f"{file.path}: changed since this run began (uid {uid}); run again")
        if kind_of(raw[:2048]) != "png":
            raise InputError(f"{file.path}: the mask of {finding} is no PNG (uid {uid}); save it as an 8-bit PNG")
        mask = read_picture(raw, file.path) > 0
        if (uid, finding) not in self._fitting and mask.shape != (shape := image_shape(file.image)):
            own, other = (f"{wide} x {high}" for high, wide in (mask.shape, shape))
            problem = f"the mask of {finding} has {own} pixels and its image {other} (uid {uid})"
            raise InputError(f"{file.path}: {problem}; draw it on the image at full size")
        self._fitting.add((uid, finding))
        return mask_cover(mask)


@dataclass(frozen=True)
class Cover:
    """A covered part of the unit square, constant on a grid of lines.

    rows, columns: increasing lines from 0 to 1, [m+1] and [n+1]; inside: bool [m,n].
    """

    rows: np.ndarray
    columns: np.ndarray
    inside: np.ndarray

    def shares(self, cells: tuple[int, int]) -> np.ndarray:
        """Return the covered share of each of h x w equal cells, float32 [h,w], exactly."""
        shares = overlaps(self.rows, cells[0]) @ self.inside.astype(np.float64) @ overlaps(self.columns, cells[1]).T
        return np.asarray(np.clip(shares, 0, 1), np.float32)


def overlaps(lines: np.ndarray, cells: int) -> np.ndarray:
    """Return the share of each of `cells` equal parts of [0,1] that lies between two neighbouring lines, [cells,n]."""
    edges = np.linspace(0, 1, cells + 1)
    high = np.minimum(edges[1:, None], lines[None, 1:])
    low = np.maximum(edges[:-1, None], lines[None, :-1])
    return np.asarray(np.maximum(high - low, 0) * cells)


def mask_cover(mask: np.ndarray) -> Cover:
    """Return what a mask, bool [H,W], covers of the square that `medlt.data.squares.square` makes of its image."""
    side = max(mask.shape)
    lines = np.arange(side + 1) / side
    return Cover(lines, lines, np.pad(mask, [_outside(length, side) for length in mask.shape]))


def _outside(length: int, side: int) -> tuple[int, int]:
    """Return how many pixels `square` adds before and behind."""
    return (side - length) // 2, side - length - (side - length) // 2


def box_cover(corners: np.ndarray) -> Cover:
    """Return what boxes [n,4] (left, top, right, bottom) cover together."""
    columns = np.unique([0.0, 1.0, *corners[:, 0], *corners[:, 2]])
    rows = np.unique([0.0, 1.0, *corners[:, 1], *corners[:, 3]])
    inside = np.zeros((len(rows) - 1, len(columns) - 1), bool)
    for left, top, right, bottom in corners:
        inside |= ((rows[:-1] >= top) & (rows[1:] <= bottom))[:, None] & (columns[:-1] >= left) & (columns[1:] <= right)
    return Cover(rows, columns, inside)


def _mask_files(
    manifest: Manifest, recorded: Mapping[str, object], uid: str, masks: Mapping[str, AnyFile]
) -> dict[str, MaskFile]:
    """Return finding -> mask of one row. Raises InputError if they are not those that were recorded."""
    image, files = manifest.file(uid), dict[str, MaskFile]()
    for finding, path in masks.items():
        try:
            files[finding] = MaskFile(path, image, digest_of(path))
        except OSError as error:
            problem = f"{error.strerror or 'no such object'} (mask of {finding}, uid {uid})"
            raise InputError(f"{path.absolute()}: {problem}; check the column {MASK}{finding}") from None
    before, now = recorded.get(uid), digest_masks({finding: one.content for finding, one in files.items()})
    if isinstance(before, str) and before != now:
        raise InputError(
            f"{image.absolute()}: a mask of uid {uid} changed since this run began; restore it, or choose another --out"
        )
    return files
