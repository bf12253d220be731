"""A second opinion on every rendered image: one note if a person should look at it before it is used.

The rules are few and wide, so that a note is rare: radiographs under their own window do not meet them.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from medlt.data.dicom.display import padding_range

BLACK = "nearly all black"
WHITE = "nearly all white"
FLAT = "nearly no contrast"
FAR = "grey levels far from the stored ones"
DOUBTS = (BLACK, WHITE, FLAT, FAR)
_SHARE = 0.98
_LEAST_RANGE = 0.1
_LARGEST_DIFFERENCE = 0.35
_SAMPLES = 128  # a side: 16,384 pixels give these shares and percentiles to about one hundredth


def doubt(pixels: np.ndarray, stored: np.ndarray, data: Dataset) -> str:
    """Return one of DOUBTS, or "" for a plausible image.

    `pixels` uint8 or uint16 [H,W] are the rendered image, full range; `stored` [H,W] or [H,W,3] are its stored values.
    Padding is ignored. BLACK and WHITE: at least 98 % of the pixels are the first or last of 256 levels. FLAT: the 1st
    and 99th percentiles differ by less than a tenth of the range. FAR: the mean difference from a stretch of the stored
    values between the same percentiles, or from its inverse, is above 0.35 of the range.
    """
    shown = _sampled(pixels) / float(np.iinfo(pixels.dtype).max)
    values = _sampled(stored).astype(np.float64)
    if values.ndim == 2 and (padding := padding_range(data)) is not None:
        kept = (values < padding[0]) | (values > padding[1])
        shown, values = shown[kept], values[kept]
    if not shown.size:
        return ""
    if (shown < 1 / 256).mean() >= _SHARE:
        return BLACK
    if (shown >= 255 / 256).mean() >= _SHARE:
        return WHITE
    low, high = np.percentile(shown, (1, 99))
    if high - low < _LEAST_RANGE:
        return FLAT
    return FAR if values.shape == shown.shape and _difference(shown, values) > _LARGEST_DIFFERENCE else ""


def _sampled(image: np.ndarray) -> np.ndarray:
    """Return every n-th row and column, about 128 of each."""
    rows, columns = (max(1, side // _SAMPLES) for side in image.shape[:2])
    return image[::rows, ::columns]


def _difference(shown: np.ndarray, values: np.ndarray) -> float:
    """Return the mean difference in [0,1] from the stretched values, dark or bright side up."""
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        return 0.0
    stretched = np.clip((values - low) / (high - low), 0, 1)
    return float(min(np.abs(shown - stretched).mean(), np.abs(shown - 1 + stretched).mean()))
