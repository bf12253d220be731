"""Rows of images with a name each, as one picture: for a notebook, a page or a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.types import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

GAP = 2
"""Width of the gaps between images, px."""


def grid(rows: Mapping[str, Iterable[Any]], side: int = 96, columns: Sequence[str] = ()) -> Image:
    """Return images as square tiles, one row below the other with its name to the left; a notebook cell shows it.

    Args:
        rows: name -> images. An image is the path of a DICOM, PNG or JPEG file, or an array or tensor, [H,W] or
            [1,H,W], or with colours [H,W,3]: floats in [0,1] or uint8.
        side: side of a tile, px.
        columns: names to write above the columns.

    Raises:
        InputError: for no image at all, and for an array of another shape.

    Examples:
        >>> picture = medlt.grid({"Pneumothorax": run.images("Pneumothorax"), "Mass": run.images("Mass")})
        >>> picture.save("grid.png")
    """
    import numpy as np
    from PIL.Image import fromarray

    tiles = {name: [_tile(one, side) for one in images] for name, images in rows.items()}
    across = max((len(row) for row in tiles.values()), default=0)
    if not across:
        raise InputError("grid: there is no image to show; give rows such as {'Mass': run.images('Mass')}")
    titles = titles_of(list(tiles), side)
    top, left = (_line(side) if columns else 0), titles.shape[1]
    height, width = titles.shape[0], across * (side + GAP) - GAP
    canvas = np.zeros((top + height, left + width, 3), np.uint8)
    canvas[top:, :left] = titles[..., None]
    for i, row in enumerate(tiles.values()):
        for j, tile in enumerate(row):
            y, x = top + i * (side + GAP), left + j * (side + GAP)
            canvas[y : y + side, x : x + side] = tile
    if columns:
        canvas[:top, left:] = _headings(columns, side, top, width)[..., None]
    grey = (canvas == canvas[..., :1]).all()
    return fromarray(canvas[..., 0].copy() if grey else canvas)


def titles_of(names: Sequence[str], size: int) -> np.ndarray:
    """Return the names of rows of `size` px, one below the other, as white text on black: uint8 [H,W]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(max(10, size // 12))
    texts = [name.replace("_", " ") for name in names]
    width = int(max(font.getlength(text) for text in texts)) + 4 * GAP
    drawing = Image.new("L", (width, (size + GAP) * len(names) - GAP))
    draw = ImageDraw.Draw(drawing)
    for row, text in enumerate(texts):
        draw.text((GAP, row * (size + GAP) + size // 2), text, fill=255, font=font, anchor="lm")
    return np.asarray(drawing)


def _line(size: int) -> int:
    """Return the height of a line of text above tiles of this side, px."""
    return max(10, size // 12) + 3 * GAP


def _headings(names: Sequence[str], size: int, height: int, width: int) -> np.ndarray:
    """Return the names of columns beside each other, as white text on black: uint8 [height,width]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    drawing = Image.new("L", (width, height))
    draw = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(max(10, size // 12))
    for column, name in enumerate(names):
        place = column * (size + GAP) + size // 2, height // 2
        draw.text(place, name.replace("_", " "), fill=255, font=font, anchor="mm")
    return np.asarray(drawing)


def _tile(image: Any, side: int) -> np.ndarray:
    """Return an image as uint8 [side,side,3]. Raises InputError for an array of another shape."""
    import cv2
    import numpy as np

    from medlt.data.images import read_image
    from medlt.data.squares import square

    if isinstance(image, str | Path):
        pixels = square(read_image(Path(image)), side)
    else:
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            pixels = np.nan_to_num(pixels.astype(np.float32))
        pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise InputError(f"grid: an image of shape {pixels.shape}; give [H,W], [1,H,W] or [H,W,3]")
        smooth = cv2.INTER_AREA if pixels.shape[0] > side else cv2.INTER_NEAREST
        pixels = cv2.resize(pixels, (side, side), interpolation=smooth)
    scaled = pixels if pixels.dtype == np.uint8 else (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)
