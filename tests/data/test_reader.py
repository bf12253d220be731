import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import monai
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged, Spacingd

from medlt.data.images import read_image
from medlt.data.reader import LoadRadiographd, RadiographReader
from medlt.types import InputError

WriteDicom = Callable[..., Path]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4095, (40, 20)).astype(np.uint16)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.parametrize("reader", [None, RadiographReader, "medlt.data.reader.RadiographReader"])
def test_monai_loads_a_radiograph_as_read_image_does(reader: Any, write_dicom: WriteDicom, pixels: np.ndarray) -> None:
    path = write_dicom(pixels)
    load = LoadRadiographd() if reader is None else LoadImaged("image", reader=reader, ensure_channel_first=True)
    image = load({"image": str(path), "uid": "a"})["image"]
    assert image.shape == (1, 40, 20)
    np.testing.assert_array_equal(image[0].numpy(), read_image(path))


def test_the_affine_matrix_has_the_spacing_so_that_monai_resamples(write_dicom: WriteDicom, pixels: np.ndarray) -> None:
    path = write_dicom(pixels, PixelSpacing=[0.2, 0.4])
    image = LoadRadiographd()({"image": path})["image"]
    assert np.diag(image.affine.numpy())[:2].tolist() == pytest.approx([0.2, 0.4])
    assert image.meta["spacing_known"]
    even = Compose([LoadRadiographd(), Spacingd("image", (0.4, 0.4))])({"image": path})["image"]
    assert even.shape == (1, 20, 20)  # 8 mm x 8 mm


def test_metadata_has_no_tag(tmp_path: Path, write_dicom: WriteDicom, pixels: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), (pixels // 16).astype(np.uint8))
    image = LoadRadiographd()({"image": tmp_path / "a.png"})["image"]
    assert not image.meta["spacing_known"]
    assert np.array_equal(image.affine.numpy(), np.eye(4))
    named = LoadRadiographd()({"image": write_dicom(pixels, PatientName="DOE^JANE", PatientID="4711")})["image"]
    text = json.dumps({key: str(value) for key, value in named.meta.items() if key != "filename_or_obj"})
    assert "DOE" not in text
    assert "4711" not in text


def test_a_refused_file_is_not_read_by_another_reader_of_monai(tmp_path: Path) -> None:
    """MONAI's PILReader would read this picture, transposed; ours refuses its damaged end."""
    whole = cv2.imencode(".png", np.zeros((40, 20), np.uint8))[1].tobytes()
    (tmp_path / "a.png").write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"a\.png: damaged image"):
        LoadRadiographd()({"image": tmp_path / "a.png"})
    with pytest.raises(InputError, match="one file, not 2"):
        LoadRadiographd()({"image": [tmp_path / "a.png", tmp_path / "b.png"]})


def test_monai_datasets_take_the_transform(write_dicom: WriteDicom, pixels: np.ndarray, tmp_path: Path) -> None:
    items = [{"image": str(write_dicom(pixels))}]
    kept = monai.data.PersistentDataset(items, LoadRadiographd(), cache_dir=tmp_path / "kept")
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(kept[0]["image"])[0], read_image(Path(items[0]["image"])))
