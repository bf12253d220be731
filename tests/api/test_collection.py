"""Collections from tables, manifests and folders, and what their summary says."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medlt
from medlt.api.collection import as_collection
from medlt.data.regions import Regions
from medlt.metrics.auroc_power import auroc_standard_error, smallest_visible_gains


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """labels.csv and png/ of eight patients with two images each."""
    rows = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(16)],
            "patient_id": [f"p{i // 2}" for i in range(16)],
            "split": ["train"] * 10 + ["val"] * 2 + ["test"] * 4,
            "sex": ["F", "M"] * 8,
            "age": range(40, 56),
            "Mass": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0],
            "Hernia": [0, None, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0],
            "width": [512] * 16,
            "empty": [0] * 16,
        }
    )
    (tmp_path / "png").mkdir()
    for name in rows["path"]:
        Image.fromarray(np.full((48, 40), 7, np.uint8)).save(tmp_path / "png" / name)
    rows.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path / "labels.csv"


def test_from_csv_takes_the_columns_that_can_be_labels(table: Path) -> None:
    collection = medlt.Collection.from_csv(table, images=table.parent / "png")
    assert collection.findings == ("Mass", "Hernia")
    assert len(collection) == 16
    assert collection.manifest.rows["Hernia"].isna().sum() == 1
    assert collection.manifest.file("3") == table.parent / "png" / "3.png"
    assert "age" in collection.manifest.rows


def test_from_csv_of_named_findings_and_columns(table: Path) -> None:
    source = pd.read_csv(table).rename(columns={"patient_id": "pid"})
    source.to_csv(table, index=False)
    given: dict[str, Any] = {"images": str(table.parent / "png"), "column": {"patient_id": "pid"}}
    collection = medlt.Collection.from_csv(str(table), findings=["Hernia"], **given)
    assert collection.findings == ("Hernia",)
    with pytest.raises(medlt.InputError, match=r"column=\{'patient_id': 'NAME'\}"):
        medlt.Collection.from_csv(table, images=table.parent / "png")


def test_from_csv_without_a_label_column(table: Path) -> None:
    pd.read_csv(table)[["path", "patient_id", "age"]].to_csv(table, index=False)
    with pytest.raises(medlt.InputError, match=r"no column holds only 0, 1 and blanks; .*findings="):
        medlt.Collection.from_csv(table, images=table.parent / "png")


def test_the_summary_counts_what_the_table_has(table: Path) -> None:
    summary = medlt.Collection.from_csv(table, images=table.parent / "png").summary()
    assert (summary.images, summary.patients) == (16, 8)
    assert dict(summary.splits) == {"train": 10, "val": 2, "test": 4}
    assert summary.findings.loc["Mass", ["train", "val", "test"]].tolist() == [1, 1, 1]
    assert summary.findings.loc["Hernia", ["train", "val", "test"]].tolist() == [4, 1, 0]
    assert summary.tail == ("Mass",)
    assert np.isnan(summary.findings.loc["Hernia", "smallest_gain"])
    text = str(summary)
    assert "16 images of 8 patients" in text
    assert "tail: Mass" in text


def test_the_standard_error_is_that_of_exponential_scores() -> None:
    """Hanley and McNeil's formula is exact in expectation for exponential scores: P(positive > negative) = 4 / 5."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        positive, negative = rng.exponential(4.0, 12), rng.exponential(1.0, 60)
        drawn.append((positive[:, None] > negative).mean())
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.01)
    assert auroc_standard_error(12, 60) == pytest.approx(np.std(drawn), rel=0.06)


def test_more_positives_show_smaller_gains() -> None:
    counts = pd.DataFrame({"positive": [0, 5, 50, 2], "negative": [100, 95, 50, 98]}, index=["A", "B", "C", "D"])
    gains = smallest_visible_gains(counts)
    assert np.isnan(gains["A"])
    assert 2.80 * auroc_standard_error(2, 98) > 0.5
    assert np.isnan(gains["D"])  # more than from chance to a perfect order
    assert gains["B"] > gains["C"] > 0
    assert gains["B"] == pytest.approx(2.80 * auroc_standard_error(5, 95), rel=0.01)  # 2 (1 - r) is 1 at r = 0.5


def test_a_collection_is_written_once_and_read_back(table: Path, tmp_path: Path) -> None:
    collection = medlt.Collection.from_csv(table, images=table.parent / "png")
    file = collection.saved(tmp_path / "out")
    before = file.stat().st_mtime_ns
    assert collection.saved(tmp_path / "out") == file
    assert file.stat().st_mtime_ns == before
    again = medlt.Collection.from_manifest(file)
    assert again.findings == collection.findings
    assert again.digest() == collection.digest()
    assert again.saved(tmp_path) == file
    assert again.manifest.file("3").is_file()


def test_boxes_and_masks_are_part_of_a_collection(table: Path, tmp_path: Path) -> None:
    """They survive a saved manifest, and make another collection."""
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((48, 40), 255, np.uint8)).save(tmp_path / "masks" / "0.png")
    rows = pd.read_csv(table).assign(mask_Mass=["../masks/0.png"] + [None] * 15)
    rows.to_csv(table, index=False)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("uid,finding,x,y,width,height\n2,Hernia,1,2,3,4\n")
    plain = medlt.Collection.from_csv(table, images=tmp_path / "png")
    boxed = plain.with_boxes(boxes)
    assert boxed.digest() != plain.digest()
    again = medlt.Collection.from_manifest(boxed.saved(tmp_path / "elsewhere"))
    regions = Regions.of(again.manifest)
    assert (regions.known("Mass"), regions.known("Hernia")) == (("0",), ("2",))
    assert regions.masks(["0"], "Mass", (1, 1)).item() == pytest.approx(40 / 48)
    assert regions.masks(["2"], "Hernia", (1, 1)).item() == pytest.approx(12 / 48**2)


def test_another_label_is_another_collection(table: Path) -> None:
    one = medlt.Collection.from_csv(table, images=table.parent / "png").digest()
    source = pd.read_csv(table)
    source.loc[0, "Mass"] = 0
    source.loc[1, "Mass"] = 1
    source.to_csv(table, index=False)
    assert medlt.Collection.from_csv(table, images=table.parent / "png").digest() != one


def test_from_a_folder_of_dicom_files(tiny_collection: medlt.Collection, tmp_path: Path) -> None:
    rows = tiny_collection.manifest.rows
    for uid in rows.index[:12]:
        shutil.copy(tiny_collection.manifest.file(uid), tmp_path / f"{uid}.dcm")
    labels = rows.iloc[:12][["patient_id", "split", "Effusion", "No_Finding"]].rename_axis("image")
    labels.to_csv(tmp_path / "labels.csv")
    collection = medlt.Collection.from_dicom_folder(tmp_path, tmp_path / "labels.csv", key="image")
    assert set(collection.findings) <= {"Effusion", "No_Finding"}
    assert len(collection) == 12
    item = collection.dataset(size=32, split=str(rows["split"].iloc[0]))[0]
    assert item["image"].shape == (1, 32, 32)


def test_from_mimic_cxr_lt(tmp_path: Path) -> None:
    names = [f"{number:08x}-0-0-0-{number:012x}" for number in range(6)]
    for split, part in (("train", names[:3]), ("val", names[3:4]), ("test", names[4:])):
        where = [f"files/p10/p1000000{name[7]}/s5000000{name[7]}/{name}.jpg" for name in part]
        rows = pd.DataFrame({"dicom_id": part, "subject_id": [1000000 + int(name[7]) for name in part]})
        rows = rows.assign(study_id=[50000000 + int(name[7]) for name in part], path=where)
        rows = rows.assign(**{"Lung Opacity": [1] * len(part), "Hernia": [0] * len(part)})
        rows.to_csv(tmp_path / f"miccai2023_mimic-cxr-lt_labels_{split}.csv", index=False)
        for file in where:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / file)
    collection = medlt.Collection.from_mimic_cxr_lt(tmp_path)
    assert collection.manifest.counts().loc["Lung Opacity", "positive"] == 6
    assert collection.summary().splits["test"] == 2


def test_a_path_is_read_by_what_it_is(table: Path, tmp_path: Path) -> None:
    collection = medlt.Collection.from_csv(table, images=table.parent / "png")
    assert as_collection(collection) is collection
    assert as_collection(str(collection.saved(tmp_path))).digest() == collection.digest()
    packed = table.parent / "png" / "labels.csv.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert as_collection(packed).findings == collection.findings
    with pytest.raises(medlt.InputError, match="from_dicom_folder"):
        as_collection(tmp_path)
    with pytest.raises(medlt.InputError, match="medlt augment"):
        as_collection("mine.yaml")
    with pytest.raises(medlt.InputError, match="no such"):
        as_collection(tmp_path / "none.csv")


def test_a_home_folder_is_expanded(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(table.parent))
    collection = medlt.Collection.from_csv("~/labels.csv", images="~/png")
    assert collection.manifest.file("3").is_file()
    assert medlt.Collection.from_csv(Path("~/labels.csv"), images=Path("~/png")).digest() == collection.digest()
    file = collection.saved(Path("~/out"))
    assert file.parent == table.parent / "out"
    assert medlt.Collection.from_manifest(f"~/out/{file.name}").file == file
    labels = pd.read_csv(table).assign(image=[str(number) for number in range(16)])
    labels.drop(columns="path").to_csv(table, index=False)
    again = medlt.Collection.from_dicom_folder("~/png", "~/labels.csv", key="image")
    assert again.findings == collection.findings
    medlt.Collection.from_phantom("~/phantom", patients=24, size=64, imbalance=2)
    assert (table.parent / "phantom").is_dir()


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 32}, "size.*at least 64"), ({"sizes": 64}, "sizes.*did you mean.*size")]
)
def test_bad_options_of_the_phantom_are_one_line(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(medlt.InputError, match=message) as raised:
        medlt.Collection.from_phantom(tmp_path / "phantom", **options)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_collections_are_compared_as_objects_and_shown_in_one_line(table: Path) -> None:
    one, other = (medlt.Collection.from_csv(table, images=table.parent / "png") for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "Collection(16 images of 8 patients, 2 findings)"
    assert repr(one.manifest) == "Manifest(16 images of 8 patients, 2 findings)"
    assert one.manifest != other.manifest
    assert repr(one.summary()) == "CollectionSummary(16 images of 8 patients, 1 tail findings)"
    assert one.summary() != one.summary()
