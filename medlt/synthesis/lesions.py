"""The lesion of a tail image: which pixels it has, and how a copy of it may vary.

Which pixels: those of the given mask or box, or the largest cells of the map, or the half of the image on its side. An
image whose finding nobody can place is not usable, and is left out of the plan.

A lesion varies in scale, rotation and place, and may be reflected. The larger it is, the less: a pneumothorax follows
the lung, a nodule does not. It moves only to usual places of the finding, or to places as usual as its own
(`medlt.localise.prior`), and not at all where no usual place is known. It is reflected only if the cases of other
patients show that the finding has no side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.localise.measure import Localisation
from medlt.localise.trust import GIVEN, NOWHERE
from medlt.synthesis.fuse import located
from medlt.synthesis.labels import UNSURE

TRIES = 16
"""Number of places that are drawn before a lesion stays where it is."""
USUAL = 0.5
"""Value of the usual place, of at most 1, from which on a place counts as usual."""


@dataclass(frozen=True)
class Move:
    """A change of a lesion about its centre; down and right are shares of the side, rotation is in degrees.

    The reflection is that of the whole image, left to right, and comes last.
    """

    scale: float = 1.0
    rotation: float = 0.0
    down: float = 0.0
    right: float = 0.0
    reflected: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Move:
        """Return the move that a plan row names."""
        numbers = {name: float(row[name]) for name in ("scale", "rotation", "down", "right")}
        return cls(**numbers, reflected=bool(row["reflected"]))

    @property
    def turn(self) -> np.ndarray:
        """Rotation and scale as a matrix [2,2] of (down, right)."""
        angle = math.radians(self.rotation)
        cosine, sine = math.cos(angle), math.sin(angle)
        return self.scale * np.array([[cosine, sine], [-sine, cosine]])

    def places(self, mask: np.ndarray) -> np.ndarray:
        """Return where the pixels of a mask, bool [S,S], come to lie, float64 [n,2] of row and column."""
        at = np.argwhere(mask).astype(np.float64)
        centre, side = at.mean(0), len(mask)
        at = centre + (at - centre) @ self.turn.T + side * np.array([self.down, self.right])
        return np.stack([at[:, 0], side - 1 - at[:, 1]], 1) if self.reflected else at

    def apply(self, image: Tensor, mask: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return the moved image [S,S] and mask, bool [S,S]; what comes from outside the image is its border."""
        if self == Move():
            return image, mask
        side, inverse = len(mask), np.linalg.inv(self.turn)
        centre = np.argwhere(mask).mean(0)
        row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        column = side - 1 - column if self.reflected else column
        away = [row - centre[0] - side * self.down, column - centre[1] - side * self.right]
        source = [centre[i] + inverse[i, 0] * away[0] + inverse[i, 1] * away[1] for i in (1, 0)]
        grid = torch.from_numpy(np.stack(source, -1) * (2 / (side - 1)) - 1).float()[None]
        pixels, cover = (
            F.grid_sample(one[None, None], grid, mode="bilinear", padding_mode=outside, align_corners=True)[0, 0]
            for one, outside in ((image, "border"), (torch.from_numpy(mask).float(), "zeros"))
        )
        return pixels, cover.numpy() >= 0.5


def visible(places: np.ndarray, side: int) -> float:
    """Return the share of places [n,2] that lie in the image."""
    return float(((places > -0.5) & (places < side - 0.5)).all(1).mean())


def usualness(places: np.ndarray, side: int, prior: np.ndarray) -> float:
    """Return the mean value of the usual place [h,w] at places [n,2]; 0 outside the image."""
    inside = ((places > -0.5) & (places < side - 0.5)).all(1)
    cell = (places[inside] + 0.5) * np.array(prior.shape) / side
    row, column = np.minimum(cell.astype(int), np.array(prior.shape) - 1).T
    return float(prior[row, column].sum() / len(places))


LARGE = 0.5
"""Extent of a lesion, as a share of the side, from which on it keeps its scale, direction and place."""


@dataclass(frozen=True)
class Variety:
    """How much small lesions vary: largest scale (and 1/scale the smallest), rotation in degrees, shift as a share of
    the side, and whether they may be reflected. The first three shrink linearly with the extent, to none at LARGE."""

    scale: float = 1.25
    rotation: float = 10.0
    shift: float = 0.1
    reflect: bool = True

    def draw(self, rng: np.random.Generator, mask: np.ndarray, prior: np.ndarray | None, symmetric: bool) -> Move:
        """Return a move of the lesion `mask`, bool [S,S]; prior: usual place [h,w], None where it is unknown."""
        room = max(0.0, 1 - float(np.ptp(np.argwhere(mask), axis=0).max() + 1) / (LARGE * len(mask)))
        scale = math.exp(room * float(rng.uniform(-1, 1)) * math.log(self.scale))
        rotation = room * float(rng.uniform(-self.rotation, self.rotation))
        reflected = bool(rng.random() < 0.5) and self.reflect and symmetric
        shifts = (room * rng.uniform(-self.shift, self.shift, (TRIES, 2))).tolist()
        still = Move(scale, rotation, 0.0, 0.0, reflected)
        if prior is None:
            return still
        side = len(mask)
        least = min(USUAL, usualness(still.places(mask), side, prior))
        for down, right in shifts:
            move = Move(scale, rotation, down, right, reflected)
            places = move.places(mask)
            if visible(places, side) >= visible(still.places(mask), side) and usualness(places, side, prior) >= least:
                return move
        return still


@dataclass(frozen=True)
class Taken:
    """Pixels of a tail image: bool [S,S], and the cells of the maps that they touch, bool [h,w]."""

    mask: np.ndarray
    cells: Tensor


@dataclass(frozen=True)
class LesionMasks:
    """The pixels of a finding in a tail image of S x S pixels.

    half: take the half of the image on the finding's side; side: of the patient, for all images, None for that of the
    finding; area: mean share of the cells that a map gives.
    """

    where: Localisation
    size: int
    half: bool = False
    side: str | None = None
    area: float = 0.15
    _given: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def usable(self, uid: str, finding: str) -> bool:
        """Return whether somebody can place the finding: a person, or a map that is not at chance nor flat."""
        if self.half and self.side is not None:
            return True
        place = self.where.trust.locate([uid], [finding])
        stage, cells = place.stages[0], place.maps[0]
        measured = self.where.measured.get((stage, finding))
        if stage == NOWHERE or (measured is not None and measured.uninformative) or not float(cells.max()) > 0:
            return False
        if self.half:
            return self._side(uid, finding) is not None
        order = cells.flatten().sort(descending=True).values
        return stage in GIVEN or bool(order[0] > order[min(round(self.area * len(order)), len(order) - 1)])

    def taken(self, uid: str, finding: str, area: float) -> Taken:
        """Return the pixels that an image gives; area: share of the cells, if only a map says where the finding is."""
        if self.half:
            return self._half(self._side(uid, finding))
        place = self.where.trust.locate([uid], [finding])
        cells = located(place.maps, place.given, [max(area, 1 / place.maps[0].numel())])[0]
        if place.stages[0] in GIVEN:
            return Taken(self._region(uid, finding), cells)
        mask = F.interpolate(cells[None, None].float(), (self.size, self.size), mode="nearest")[0, 0]
        return Taken(mask.bool().numpy(), cells)

    def _region(self, uid: str, finding: str) -> np.ndarray:
        """Return a given mask or box at full size."""
        if (uid, finding) not in self._given:
            self._given[uid, finding] = self.where.regions.pixels(uid, finding, self.size)
        return self._given[uid, finding]

    def _side(self, uid: str, finding: str) -> str | None:
        """Return the patient's side of a finding, None if less than 0.8 of the map is on one side."""
        if self.side is not None:
            return self.side
        cells = self.where.trust.locate([uid], [finding]).maps[0].double()
        half = cells.shape[1] // 2
        right, left = float(cells[:, :half].sum()), float(cells[:, -half:].sum())
        sure = UNSURE[1] * (left + right)
        return "left" if left >= sure > 0 else "right" if right >= sure > 0 else None

    def _half(self, side: str | None) -> Taken:
        """Return the half of the image that shows a side: the patient's left is on the right."""
        (height, width), size = self.where.trust.size, self.size
        cells, mask = torch.zeros(height, width, dtype=torch.bool), np.zeros((size, size), bool)
        for part in (cells, mask):
            half = part.shape[1] // 2
            part[:, half if side == "left" else 0 : None if side == "left" else half] = True
        return Taken(mask, cells)
