"""A small MIMIC-CXR-JPG in exactly its published layout, with all label lists that medlt reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.phantom.mimic_cxr_jpg import entries, write_images, write_mimic_cxr_jpg

SEED, SIZE = 5, 48
RAREST = ("Pneumoperitoneum", "Pneumothorax")
COUNTS = {name: 4 if name in RAREST else 5 + 3 * (name == "No Finding") for name in FINDINGS}
"""Finding -> train patients: the rarest fewest, so that every finding is seen in every split."""


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    """The images of the collection."""
    return entries(COUNTS)


@pytest.fixture(scope="session")
def jpg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as JPEG files with all its tables and lists. Tests only read it."""
    return write_mimic_cxr_jpg(tmp_path_factory.mktemp("mimic-cxr-jpg"), COUNTS, size=SIZE, seed=SEED)


@pytest.fixture(scope="session")
def dcm(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> Path:
    """The same images as DICOM files, as in MIMIC-CXR, without tables. Tests only read it."""
    root = tmp_path_factory.mktemp("mimic-cxr")
    write_images(root, table[table.index % 8 == 0], size=SIZE, seed=SEED, dicom=True)
    return root
