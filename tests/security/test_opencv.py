"""OpenCV computes with arrays for medlt and opens nothing: its readers of files, videos and networks are unreached."""

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest

from medlt.data.convert.encode import jpeg
from medlt.rng import numpy_generator

PACKAGE = Path(__file__).parents[2] / "medlt"
ARRAYS = {
    "GaussianBlur", "applyColorMap", "boundingRect", "connectedComponentsWithStats", "convertScaleAbs",
    "copyMakeBorder", "countNonZero", "dilate", "distanceTransform", "drawContours", "equalizeHist", "fillPoly",
    "findContours", "morphologyEx", "polylines", "resize", "sepFilter2D", "setNumThreads", "threshold",
}  # fmt: skip
"""Functions of arrays; none is in imgcodecs, videoio, dnn or another part that reads a file."""


def used(source: str) -> set[str]:
    """What a source takes from cv2, without constants; other ways than `cv2.NAME` count under their own name."""
    nodes = list(ast.walk(ast.parse(source)))
    of_cv2 = [one for one in nodes if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "cv2"]
    names = {one.attr for one in of_cv2 if not one.attr.split("_")[0].isupper()}
    names |= {str(one.module) for one in nodes if isinstance(one, ast.ImportFrom) and "cv2" in str(one.module)}
    aliases = [alias for one in nodes if isinstance(one, ast.Import) for alias in one.names]
    return names | {alias.asname for alias in aliases if alias.name == "cv2" and alias.asname}


def test_medlt_calls_no_reader_of_opencv() -> None:
    others = {path.name: calls for path in PACKAGE.rglob("*.py") if (calls := used(path.read_text()) - ARRAYS)}
    assert others == {}


@pytest.mark.parametrize(
    "source", ["cv2.imread(x)", "cv2.VideoCapture(x)", "from cv2 import dnn", "import cv2 as c", "cv2.imdecode(x, 0)"]
)
def test_the_test_sees_a_reader(source: str) -> None:
    assert used(source) - ARRAYS


@pytest.mark.parametrize("quality", [1, 75, 95, 100])
@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (64, 65)])
def test_jpegs_are_those_of_opencv_to_the_byte(shape: tuple[int, int], quality: int) -> None:
    pixels = numpy_generator(0, "jpeg", *shape).integers(0, 256, shape, np.uint8)
    assert jpeg(pixels, quality) == cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
