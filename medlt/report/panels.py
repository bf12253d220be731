"""Strips that show how one image is fused: its parents, their class activation maps, the mask and the result."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from medlt.files import write_bytes
from medlt.types import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    Gray: TypeAlias = NDArray[np.float32]
    Colour: TypeAlias = NDArray[np.float32]

STAGES = ("tail", "head", "cam_tail", "cam_head", "mask", "fused", "refined")
NAMES = ("tail parent", "head parent", "tail CAM", "head CAM", "mask", "fused", "refined")
GAP = 2
FROM_TAIL, FROM_HEAD = (0.96, 0.55, 0.16), (0.25, 0.55, 0.95)


def _square(stage: Tensor, side: int, *, nearest: bool = False) -> Gray:
    """[1,H,W] -> float32 [side,side] in [0,1]."""
    import cv2
    import numpy as np

    pixels = np.nan_to_num(stage.detach().float().cpu().numpy().reshape(stage.shape[-2:]))
    smooth = cv2.INTER_AREA if pixels.shape[0] > side else cv2.INTER_CUBIC
    resized = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_NEAREST if nearest else smooth)
    return np.asarray(np.clip(resized, 0, 1), dtype=np.float32)


def _gray(pixels: Gray) -> Colour:
    import numpy as np

    return np.repeat(pixels[..., None], 3, axis=2)


def heat(pixels: Gray, cam: Gray) -> Colour:
    """Return the image under the activation in the colours of inferno, opacity by strength; [H,W,3] in [0,1]."""
    import cv2
    import numpy as np

    lut = cv2.applyColorMap((cam * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1] / 255
    opacity = 0.7 * cam[..., None]
    return np.asarray(_gray(pixels) * (1 - opacity) + lut * opacity, dtype=np.float32)


def tint(tail: Gray, head: Gray, mask: Gray) -> Colour:
    """Return both parents combined by the mask: tail pixels orange, head pixels blue, the border white."""
    import cv2
    import numpy as np

    inside = mask > 0.5
    colour = np.where(inside[..., None], np.array(FROM_TAIL), np.array(FROM_HEAD))
    mixed = np.ascontiguousarray(0.62 * _gray(np.where(inside, tail, head)) + 0.38 * colour, dtype=np.float32)
    borders, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(mixed, borders, -1, (1.0, 1.0, 1.0), 1), dtype=np.float32)


def strip(stages: Mapping[str, Tensor], side: int = 128) -> Image:
    """Return one row of square tiles in the order of `STAGES`. Each stage is [1,H,W] in [0,1].

    A CAM lies over its own parent, the mask (1: tail parent) over both. Raises InputError if a stage is missing.
    """
    if missing := [name for name in STAGES if name not in stages]:
        raise InputError(f"panel: the stage {missing[0]!r} is missing; give all of {', '.join(STAGES)}")
    flat = {name: _square(stages[name], side, nearest=name == "mask") for name in STAGES}
    drawn = {
        "cam_tail": heat(flat["tail"], flat["cam_tail"]),
        "cam_head": heat(flat["head"], flat["cam_head"]),
        "mask": tint(flat["tail"], flat["head"], flat["mask"]),
    }
    return _row([drawn.get(name, _gray(flat[name])) for name in STAGES])


def pair(left: Tensor, right: Tensor, side: int = 128) -> Image:
    """Return two images [1,H,W] in [0,1] side by side, as square tiles."""
    return _row([_gray(_square(image, side)) for image in (left, right)])


def _row(tiles: Sequence[Colour]) -> Image:
    """Return square tiles [S,S,3] in [0,1] beside each other, `GAP` px between them."""
    import numpy as np
    from PIL.Image import fromarray

    side = len(tiles[0])
    canvas = np.full((side, len(tiles) * (side + GAP) - GAP, 3), 128, np.uint8)
    for place, tile in enumerate(tiles):
        left = place * (side + GAP)
        canvas[:, left : left + side] = (tile * 255 + 0.5).astype(np.uint8)
    return fromarray(canvas)


def png(image: Image) -> bytes:
    """Return the image as PNG bytes; equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_panel(run: Path, uid: str, stages: Mapping[str, Tensor], side: int = 128) -> str:
    """Write the strip, and return its path relative to the run folder, for the column `file` of panels.parquet.

    The uid is percent-quoted, so that the file is always inside the folder.
    """
    file = f"panels/{quote(uid, safe='')}.png"
    write_bytes(Path(run) / file, png(strip(stages, side)))
    return file
