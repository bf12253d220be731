"""Masks and boxes against a raster that is painted pixel by pixel and squared like the product's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medlt.config import CsvData
from medlt.data.boxes import with_boxes
from medlt.data.images import image_shape, read_image
from medlt.data.layouts import read_layout
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions, box_cover, mask_cover
from medlt.data.source import open_data
from medlt.data.squares import square
from medlt.data.validate import validate
from medlt.types import InputError

FINDINGS = ("Mass", "Infiltration")
HIGH, WIDE = 30, 20
BOXES = "uid,finding,x,y,width,height\n"


def save(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path.name


@pytest.fixture
def collection(tmp_path: Path) -> Manifest:
    """Three images of 30 x 20 px; a mask of Mass for u0 and u1."""
    rng = np.random.default_rng(0)
    for i in range(3):
        save(tmp_path / f"{i}.png", rng.integers(1, 255, (HIGH, WIDE)))
    for i in range(2):
        save(tmp_path / f"masks/{i}.png", 255 * (rng.random((HIGH, WIDE)) > 0.8))
    rows = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(3)],
            "patient_id": list("abc"),
            "split": "train",
            "view": "PA",
            "Mass": [1, 1, 0],
            "Infiltration": [1, 1, 1],
            "mask_Mass": ["masks/0.png", "masks/1.png", None],
        },
        index=["u0", "u1", "u2"],
    )
    return Manifest(rows, FINDINGS, tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "boxes.csv"
        path.write_text(text)
        return path

    return write


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_mask_covers_what_the_squared_image_of_the_mask_shows(shape, size, seed):
    """`square` pads with the darkest pixel and averages areas: the covered share of a mask with a dark pixel."""
    mask = np.random.default_rng(seed).random(shape) > 0.6
    mask[0, 0] = False
    if max(shape) < size:
        size = max(shape)
    np.testing.assert_allclose(mask_cover(mask).shares((size, size)), square(mask.astype(float), size), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 19), st.integers(1, 20)] * 2), min_size=1, max_size=4),
    cells=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_boxes_cover_the_pixels_that_they_paint_once(boxes, cells):
    """Overlapping boxes count once; the grid of cells may be finer than the raster and need not be square."""
    painted, corners = np.zeros((40, 40)), []
    for left, wide, top, high in boxes:
        corners.append([left / 40, top / 40, (left + wide) / 40, (top + high) / 40])
        painted[top : top + high, left : left + wide] = 1
    fine = painted.repeat(cells[0], 0).repeat(cells[1], 1)  # each cell is 40 x 40 whole parts
    shares = fine.reshape(cells[0], 40, cells[1], 40).mean((1, 3))
    np.testing.assert_allclose(box_cover(np.array(corners)).shares(cells), shares, atol=1e-6)


def test_masks_follow_uids_and_are_nan_without_one(collection):
    regions = Regions.of(collection)
    found = regions.masks(["u2", "u1", "nobody", "u0"], "Mass", 15)
    assert found.dtype == torch.float32
    assert [bool(one.isnan().all()) for one in found] == [True, False, True, False]
    for at, uid in ((1, "u1"), (3, "u0")):
        drawn = square((read_image(collection.root / "masks" / f"{uid[1]}.png") > 0).astype(float), 15)
        np.testing.assert_allclose(found[at], drawn, atol=1e-6)
    assert found[3, :, :2].max() == 0  # the padding of an image higher than wide
    assert regions.known("Mass") == ("u0", "u1")
    assert regions.known("Infiltration") == ()
    assert regions.findings == ("Mass",)
    assert (regions.kind("u0", "Mass"), regions.kind("u2", "Mass"), regions.kind("u0", "Infiltration")) == (
        "mask", None, None,
    )  # fmt: skip
    assert regions.masks(["u0"], "Mass", (4, 6)).shape == (1, 4, 6)


def test_no_regions_are_legal(collection):
    empty = Regions.of(collection.without_regions())
    assert empty.findings == ()
    assert empty.known("Mass") == ()
    assert empty.kind("u0", "Mass") is None
    assert empty.masks(["u0", "u1"], "Mass", 4).isnan().all()
    assert empty.digest() == Regions().digest() != Regions.of(collection).digest()


def test_a_mask_comes_before_a_box(collection, table):
    boxed = with_boxes(collection, table(BOXES + "u0,Mass,0,0,5,5\nu2,Mass,0,0,5,5\n"))
    regions, alone = Regions.of(boxed), Regions.of(collection)
    assert (regions.kind("u0", "Mass"), regions.kind("u2", "Mass")) == ("mask", "box")
    assert torch.equal(regions.masks(["u0"], "Mass", 5), alone.masks(["u0"], "Mass", 5))
    assert regions.known("Mass") == ("u0", "u1", "u2")


def test_a_box_lies_where_it_was_drawn(collection, table):
    """In pixels of the file, or of the larger image that the table names."""
    plain = BOXES + "u0,Infiltration,5,12,10,6\n"
    framed = "uid,finding,x,y,width,height,image_width,image_height\n0.png,infiltration,50,120,100,60,200,300\n"
    drawn = np.zeros((HIGH, WIDE))
    drawn[12:18, 5:15] = 1
    for text in (plain, framed):
        regions = Regions.of(with_boxes(collection, table(text)))
        np.testing.assert_allclose(regions.masks(["u0"], "Infiltration", 6)[0], square(drawn, 6), atol=1e-6)


def test_a_pixel_belongs_to_a_region_that_covers_half_of_it_and_a_tiny_region_keeps_what_it_touches():
    """A box from 0.4 to 3.5 pixels covers 0.6 of the first column and half of the last; one of 0.2 pixels less."""
    boxes = {"wide": np.array([[0.4, 1.0, 3.5, 2.0]]) / 8, "tiny": np.array([[4.1, 4.1, 4.3, 4.3]]) / 8}
    regions = Regions(boxes={"Mass": boxes})
    wide, tiny = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    wide[1, :4], tiny[4, 4] = True, True
    np.testing.assert_array_equal(regions.pixels("wide", "Mass", 8), wide)
    np.testing.assert_array_equal(regions.pixels("tiny", "Mass", 8), tiny)
    narrower = Regions(boxes={"Mass": {"wide": np.array([[0.6, 1.0, 3.4, 2.0]]) / 8}})
    wide[1, [0, 3]] = False
    np.testing.assert_array_equal(narrower.pixels("wide", "Mass", 8), wide)


def test_the_nih_table_is_read_in_pixels_of_1024(collection, table):
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    text = header + "2.png,Infiltrate,0,512,256,256,,,\n9.png,Infiltrate,0,0,9,9,,,\n2.png,Nodule,0,0,9,9,,,\n"
    regions = Regions.of(with_boxes(collection, table(text)))
    assert regions.known("Infiltration") == ("u2",)
    wanted = np.zeros((4, 4))
    wanted[2, 0] = 1
    np.testing.assert_allclose(regions.masks(["u2"], "Infiltration", 4)[0], wanted, atol=1e-6)


def test_regions_survive_a_manifest_file_a_move_and_a_join(collection, table, tmp_path):
    boxed = with_boxes(collection, table(BOXES + "u2,Infiltration,0,0,5,5\nu2,Infiltration,9,9,5,5\n"))
    other = tmp_path / "elsewhere" / "manifest.parquet"
    boxed.write(other)
    read = Manifest.read(other)
    assert (read.digest(), Regions.of(read).digest()) == (boxed.digest(), Regions.of(boxed).digest())
    parts = [read.where(read.rows.index.to_series() == uid) for uid in ("u0", "u1", "u2")]
    joined = parts[0].without_regions().join(parts[1]).join(parts[2])
    regions = Regions.of(joined)
    assert (regions.known("Mass"), regions.known("Infiltration")) == (("u1",), ("u2",))
    assert torch.equal(regions.masks(["u1"], "Mass", 7), Regions.of(collection).masks(["u1"], "Mass", 7))


def test_digests_see_a_changed_mask_and_a_changed_box(collection, table):
    text = BOXES + "u2,Mass,0,0,5,5\n"
    boxed = with_boxes(collection, table(text))
    before = boxed.digest(), Regions.of(boxed).digest()
    moved = with_boxes(collection, table(text.replace("0,0,5", "0,1,5")))
    assert not {moved.digest(), Regions.of(moved).digest()} & set(before)
    save(collection.root / "masks/1.png", np.full((HIGH, WIDE), 255))
    assert not {boxed.digest(), Regions.of(boxed).digest()} & set(before)


def test_a_mask_that_changes_is_never_taken_silently(collection):
    recorded, regions = collection.with_mask_contents(), Regions.of(collection)
    assert recorded.digest() == collection.digest()
    assert recorded.with_mask_contents().digest() == recorded.digest()
    save(collection.root / "masks/1.png", np.zeros((HIGH, WIDE)))
    assert recorded.digest() != collection.digest() == recorded.with_mask_contents().digest()
    with pytest.raises(InputError, match="a mask of uid u1 changed"):
        Regions.of(recorded)
    regions.masks(["u0"], "Mass", 4)
    with pytest.raises(InputError, match=r"1\.png: changed .* \(uid u1\)"):
        regions.masks(["u1"], "Mass", 4)


def _missing(collection: Manifest) -> None:
    (collection.root / "masks/0.png").unlink()


def _other_size(collection: Manifest) -> None:
    save(collection.root / "masks/0.png", np.zeros((WIDE, HIGH)))


def _jpeg(collection: Manifest) -> None:
    Image.fromarray(np.zeros((HIGH, WIDE), np.uint8)).save(collection.root / "masks/0.png", format="JPEG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing, "mask of Mass.*u0"),
        (_other_size, "30 x 20 pixels and its image 20 x 30 .*u0.*full size"),
        (_jpeg, "the mask of Mass is no PNG .*u0"),
    ],
)
def test_a_bad_mask_is_one_clear_line(collection, spoil, message):
    spoil(collection)
    with pytest.raises(InputError, match=message) as error:
        Regions.of(collection).check()
    assert "\n" not in str(error.value)
    if spoil is _missing:
        with pytest.raises(InputError, match=r"no such mask of Mass .*mask_Mass"):
            collection.check_files()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOXES + "u0,Mas,0,0,5,5\n", "'Mas' of a box .*did you mean 'Mass'"),
        (BOXES + "u0,Mass,16,0,6,5\n", r"box 16, 0, 6, 5 of Mass \(uid u0\) is not inside its image of 20 x 30 px"),
        (BOXES + "u0,Mass,1,1,0,5\n", "not inside"),
        (BOXES + "u0,Mass,1,,5,5\n", "u0 has a side that is no number"),
        (BOXES + "u9,Mass,0,0,5,5\n", "no box is of an image"),
        ("uid,finding,x,y,w,height\nu0,Mass,0,0,5,5\n", "missing column 'width'"),
        ("Image Index,Finding Label,x\n0.png,Mass,3\n", "x, y, w and h"),
    ],
)
def test_a_bad_box_is_one_clear_line(collection, table, text, message):
    with pytest.raises(InputError, match=message) as error:
        with_boxes(collection, table(text))
    assert "\n" not in str(error.value)
    assert "boxes.csv" in str(error.value)


def test_bad_columns_are_refused(collection):
    rows = collection.rows
    with pytest.raises(InputError, match=r"mask_Mas.*did you mean 'Mass'"):
        Manifest(rows.rename(columns={"mask_Mass": "mask_Mas"}), FINDINGS, collection.root)
    for wrong in ([0.1, 0.2, 0.3], [0.5, 0.1, 0.4, 0.2], [0, 0, 1, 1.5], "left"):
        boxes = pd.Series([wrong, None, None], rows.index, dtype=object)
        with pytest.raises(InputError, match="uid u0: box_Mass"):
            Manifest(rows.assign(box_Mass=boxes), FINDINGS, collection.root)


def test_tables_of_a_config_and_of_a_layout_keep_masks(collection, table, tmp_path):
    """Mask files below the image folder are no images without labels."""
    labels = tmp_path / "labels.csv"
    collection.rows.to_csv(labels)
    boxes = table(BOXES + "u2,Infiltration,0,0,5,5\n")
    by_config = open_data(CsvData(table=labels, findings=FINDINGS, boxes=boxes), seed=0, folder=tmp_path)
    assert Regions.of(by_config).known("Infiltration") == ("u2",)
    result = read_layout("csv", labels, {"findings": ",".join(FINDINGS), "images": tmp_path})
    for manifest in (by_config, result.manifest):
        wanted = Regions.of(collection).masks(["u0"], "Mass", 9)
        assert torch.equal(Regions.of(manifest).masks(["u0"], "Mass", 9), wanted)
    assert not len(result.orphans)
    subset = CsvData(table=labels, findings=("Infiltration",))
    assert Regions.of(open_data(subset, seed=0, folder=tmp_path)).findings == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_shape_of_a_turned_picture_is_that_of_its_pixels(tmp_path, orientation):
    picture, exif = Image.fromarray(np.zeros((3, 5), np.uint8)), Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        picture.save(tmp_path / name, exif=exif)
        assert image_shape(tmp_path / name) == read_image(tmp_path / name).shape


def test_the_shape_of_a_dicom_file_is_that_of_its_pixels(write_dicom):
    path = write_dicom(np.arange(15, dtype=np.uint16).reshape(3, 5))
    assert image_shape(path) == read_image(path).shape == (3, 5)


def test_validation_counts_regions_and_finds_what_does_not_fit(collection, table):
    boxed = with_boxes(collection, table(BOXES + "u2,Mass,0,0,5,5\n"))
    report = validate(boxed)
    assert report.summary()["regions"] == {"Mass": 3}
    assert [problem.what for problem in report.problems if "Mass" in problem.what] == [
        "1 image(s) with a mask or a box of Mass whose label is 0; check the label table"
    ]
    assert not any(problem.fatal and "mask" in problem.what for problem in report.problems)
    _other_size(collection)
    assert not validate(boxed).passed
