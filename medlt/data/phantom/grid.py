"""The detector plane in centimetres: the position of every pixel in the patient, and anti-aliased strokes.

Axes of the patient: x in cm, growing to the patient's left (image right); y in cm, growing to the feet; the origin is
the middle of the detector for an upright, centred patient. All lengths are measured in the detector plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
"""Maps are float32."""

_FRACTION_BITS = 4


@dataclass(frozen=True)
class Grid:
    """Pixel centres in patient coordinates, `x` and `y` float32 [size,size], and the patient's pose."""

    x: Array
    y: Array
    spacing: float
    """cm per pixel."""
    angle: float
    """In-plane turn of the patient, radians, clockwise in the image."""
    offset: tuple[float, float]
    """Position of the patient's origin in the image, cm from the image centre (right, down)."""

    @property
    def size(self) -> int:
        """Return the number of rows, equal to that of columns."""
        return int(self.x.shape[0])

    def pixels(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return pixel coordinates [...,2] (column, row) of patient points [...,2] in cm."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = points[..., 0], points[..., 1]
        image = np.stack([cos * x - sin * y + self.offset[0], sin * x + cos * y + self.offset[1]], axis=-1)
        return np.asarray(image / self.spacing + (self.size - 1) / 2)

    def _fixed_point(self, lines: Sequence[NDArray[np.floating]]) -> list[NDArray[np.int32]]:
        pixels = np.round(self.pixels(np.concatenate(lines)) * 2**_FRACTION_BITS).astype(np.int32)
        return np.split(pixels, np.cumsum([len(line) for line in lines])[:-1])

    def stroke(self, lines: Sequence[NDArray[np.floating]], width: float) -> Array:
        """Return the coverage in [0,1] of polylines ([n,2], cm) of `width` cm; faint if thinner than a pixel."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        thickness, drawn = _pen(width / self.spacing)
        tone = round(255 * min(1.0, width / self.spacing / drawn))
        cv2.polylines(canvas, self._fixed_point(lines), False, tone, thickness, cv2.LINE_AA, _FRACTION_BITS)
        return canvas.astype(np.float32) / 255

    def fill(self, polygon: NDArray[np.floating]) -> Array:
        """Return the coverage in [0,1] of a closed polygon [n,2], cm."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(canvas, self._fixed_point([polygon]), 255, cv2.LINE_AA, _FRACTION_BITS)
        return canvas.astype(np.float32) / 255

    def blur(self, image: Array, sigma: float) -> Array:
        """Blur with a Gaussian of `sigma` cm; a wide one is computed on a coarser grid."""
        pixels = sigma / self.spacing
        if pixels < 4:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), max(pixels, 0.05), borderType=cv2.BORDER_REPLICATE))
        coarse = max(8, round(self.size * 3 / pixels))
        small = cv2.resize(image, (coarse, coarse), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), pixels * coarse / self.size, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_CUBIC))

    def texture(self, rng: np.random.Generator, grain: float) -> Array:
        """Draw a smooth random field of about unit variance with structure of `grain` cm, the same at every size."""
        cells = max(4, round(self.spacing * self.size / grain))
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        return np.asarray(cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC)) * 1.4


def _pen(pixels: float) -> tuple[int, float]:
    """Return OpenCV's thickness for a line of this width, and the measured width, to which anti-aliasing adds."""
    for thickness, drawn in ((1, 1.35), (2, 3.4)):
        if drawn > 0.85 * pixels:
            return thickness, drawn
    thickness = max(3, 2 * round((0.97 * pixels - 3.3) / 2) + 1)
    return thickness, 1.03 * thickness + 2.4


def grid(size: int, field: float, angle: float = 0.0, offset: tuple[float, float] = (0.0, 0.0)) -> Grid:
    """Return a size x size detector of `field` cm with the patient turned by `angle` and displaced by `offset`."""
    spacing = field / size
    line = ((np.arange(size) - (size - 1) / 2) * spacing).astype(np.float32)
    u, v = (line - np.float32(offset[0]))[None, :], (line - np.float32(offset[1]))[:, None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return Grid(cos * u + sin * v, cos * v - sin * u, spacing, angle, offset)


def smoothstep(u: Array) -> Array:
    """Return 0 below 0, 1 above 1, and a cubic between."""
    u = np.clip(u, 0, 1)
    return np.asarray(u * u * (3 - 2 * u))
