"""`medlt.convert` is the conversion of the command line, with a reason for every file that gives no image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medlt


@pytest.fixture(scope="module")
def archive(tiny_collection: medlt.Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, one of them cut short, and a text."""
    place = tmp_path_factory.mktemp("archive")
    for number, file in enumerate(tiny_collection.paths()[:3]):
        content = file.read_bytes()
        (place / f"IM{number}").write_bytes(content if number else content[:-2000])
    (place / "readme.txt").write_text("exported on Monday")
    return place


def test_every_file_is_accounted_for(archive: Path, tmp_path: Path) -> None:
    converted = medlt.convert(archive, tmp_path / "out", size=32, workers=1, progress=False)
    assert len(converted.images) == 2
    assert sorted(converted.failures["reason"]) == ["not_dicom", "truncated"]
    assert str(converted).splitlines()[0] == "2 converted, 1 skipped, 1 failed"
    for path in converted.images["path"]:
        assert np.asarray(Image.open(converted.folder / path)).shape == (32, 32)


def test_a_deidentified_folder_is_the_one_that_may_leave(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    given = {"deidentify": "basic", "key": tmp_path / "key", "workers": 1, "progress": False}
    converted = medlt.convert(archive, tmp_path / "out", **given)
    assert converted.folder == tmp_path / "out" / "release"
    assert (converted.out / "private" / "crosswalk.csv").is_file()
    assert not converted.images["patient_id"].str.startswith("PHANTOM").any()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"modality": ("CR",)}, "no setting 'modality'; did you mean 'modalities'"),
        ({"quality": 0}, "quality=... 0: JPEG quality"),
        ({"deidentify": "basic"}, "deidentify=... needs key=FILE"),
    ],
)
def test_wrong_settings_are_refused_in_the_words_of_the_call(
    settings: dict[str, object], problem: str, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(medlt.InputError) as refused:
        medlt.convert(archive, tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert problem in str(refused.value)
    assert not (tmp_path / "out").exists()
