"""MIMIC-CXR-LT and MIMIC-CXR-JPG, in exactly their folders, file names and columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlt.data.layouts.mimic_cxr_lt import FINDINGS
from medlt.data.manifest import Manifest
from medlt.types import InputError

CHEXPERT = FINDINGS[:14]
IMAGES = {  # dicom_id: subject, study, view, part of the official split
    "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014": ("10000032", "50414267", "PA", "train"),
    "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962": ("10000032", "50414267", "LATERAL", "train"),
    "2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab": ("10000032", "53189527", "PA", "train"),
    "68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714": ("11000032", "53911762", "AP", "validate"),
    "fffabebf-74fd3a1f-673b6b41-96ec0ac9-2ab69818": ("12000032", "56699142", "LL", "test"),
}
DICOMS = list(IMAGES)


def place(dicom: str, ending: str = ".jpg") -> str:
    subject, study, *_ = IMAGES[dicom]
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}{ending}"


def listed(dicoms: list[str], finding: str = "Pneumonia", **more: Any) -> dict[str, Any]:
    """Columns of a MIMIC-CXR-LT list with one finding an image."""
    return {
        "subject_id": [IMAGES[d][0] for d in dicoms],
        "study_id": [IMAGES[d][1] for d in dicoms],
        "dicom_id": dicoms,
        "path": [place(d) for d in dicoms],
        **{f: [int(f == finding)] * len(dicoms) for f in FINDINGS},
        **more,
    }


def lists_2022(put: Callable[..., Path], name: str = "mimic-cxr-lt_single-label_{}.csv") -> None:
    put(f"labels/{name.format('train')}", **listed(DICOMS[:3]))
    put(f"labels/{name.format('balanced-val')}", **listed(DICOMS[3:4], "Edema"))
    put(f"labels/{name.format('test')}", **listed(DICOMS[4:], "No Finding"))
    put(f"labels/{name.format('balanced-test')}", **listed(DICOMS[4:], "No Finding"))


def own(put: Callable[..., Path], *kinds: str, ending: str = ".csv.gz") -> None:
    """MIMIC-CXR-JPG's own tables."""
    subjects, studies, views, parts = zip(*IMAGES.values(), strict=True)
    ids = {"dicom_id": DICOMS, "subject_id": subjects, "study_id": studies}
    if "metadata" in kinds:
        put(f"mimic-cxr-2.0.0-metadata{ending}", **ids, ViewPosition=views, Rows=[3056] * 5)
    if "split" in kinds:
        put(f"mimic-cxr-2.0.0-split{ending}", dicom_id=DICOMS, study_id=studies, subject_id=subjects, split=parts)
    by_study = {s: p for p, s, *_ in IMAGES.values()}
    labels = dict.fromkeys(CHEXPERT, [None] * 4) | {"Pneumonia": [1, -1, 0, None], "No Finding": [None, None, 1, 1]}
    for kind in {"chexpert", "negbio"}.intersection(kinds):
        put(f"mimic-cxr-2.0.0-{kind}{ending}", subject_id=by_study.values(), study_id=list(by_study), **labels)


@pytest.mark.parametrize(
    "name",
    [
        "mimic-cxr-lt_single-label_{}.csv",
        "mimic-cxr-lt_single-label_{}.csv.gz",
        "MIMIC-CXR-LT_single_label_{}.csv",
        "061322_mimic_cxr_lt_single-label_{}.csv",
        "mimic-lt_single-label_{}.csv",
    ],
)
def test_the_lists_of_2022_give_one_manifest_however_spelt(
    touch: Any, put: Any, read: Any, positives: Any, tmp_path: Path, name: str
) -> None:
    lists_2022(put, name)
    own(put, "metadata", "chexpert", "split")  # study labels beside the lists change nothing
    result = read("mimic-cxr-lt", touch(place(d) for d in DICOMS))
    rows = result.manifest.rows
    assert result.manifest.findings == FINDINGS
    assert len(FINDINGS) == 19
    assert list(rows["split"]) == ["train", "train", "train", "val", "test"]
    assert list(rows["patient_id"]) == [v[0] for v in IMAGES.values()]
    assert list(rows["view"]) == ["PA", "LATERAL", "PA", "AP", "LL"]
    assert list(rows["balanced_test"]) == [False] * 4 + [True]
    assert list(positives(result).values()) == [{"Pneumonia"}] * 3 + [{"Edema"}, {"No Finding"}]
    assert not len(result.orphans)
    result.manifest.check_files()
    result.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.digest() == result.manifest.digest()
    again.check_files()


@pytest.mark.parametrize("prefix", ["miccai2023_", "121722_", ""])
def test_the_lists_of_2023_and_the_choice_between_both(
    touch: Any, put: Any, read: Any, positives: Any, prefix: str
) -> None:
    for part, dicoms in (("train", DICOMS[:3]), ("val", DICOMS[3:4]), ("test", DICOMS[4:])):
        several = listed(dicoms, "Edema", Fracture=[1] * len(dicoms))
        put(f"miccai-2023_mimic-cxr-lt/{prefix}mimic-cxr-lt_labels_{part}.csv", **several)
    src = touch(place(d) for d in DICOMS)
    assert set.union(*positives(read("mimic-cxr-lt", src)).values()) == {"Edema", "Fracture"}
    lists_2022(put)
    with pytest.raises(InputError, match="holds the lists of 2022 and 2023; choose one with --release"):
        read("mimic-cxr-lt", src)
    assert "Fracture" in positives(read("mimic-cxr-lt", src, release="2023"))[DICOMS[0]]
    assert positives(read("mimic-cxr-lt", src, release="2022"))[DICOMS[0]] == {"Pneumonia"}


@pytest.mark.parametrize("ending", [".jpg", ".dcm"])
@pytest.mark.parametrize("apart", [False, True])
def test_images_may_be_dicom_and_lie_apart(touch: Any, put: Any, read: Any, ending: str, apart: bool) -> None:
    lists_2022(put)
    below = "mimic-cxr/2.0.0/" if apart else ""
    src = touch(below + place(d, ending) for d in DICOMS)
    if apart:
        result = read("mimic-cxr-lt", src / "labels", images=src / below)
    else:
        result = read("mimic-cxr-lt", src)
    assert list(result.manifest.rows["path"]) == [place(d, ending) for d in DICOMS]
    result.manifest.check_files()
    assert result.failures == 0
    assert any("view is blank" in note for note in result.notes)


def test_of_two_copies_the_published_one_is_taken_and_it_is_told(touch: Any, put: Any, read: Any) -> None:
    lists_2022(put)
    small = [place(d).replace("files/", "a-512/") for d in DICOMS[:2]]
    result = read("mimic-cxr-lt", touch([*(place(d) for d in DICOMS), *small]))
    assert list(result.manifest.rows["path"]) == [place(d) for d in DICOMS]
    assert any(note.startswith("2 image(s) occur more than once") for note in result.notes)
    assert not len(result.orphans)


@pytest.mark.parametrize("metadata", [True, False])
def test_study_labels_reach_every_image_of_the_study(
    touch: Any, put: Any, read: Any, lost: Any, metadata: bool
) -> None:
    own(put, "chexpert", "negbio", "split", *(["metadata"] if metadata else []))
    src = touch([*(place(d) for d in DICOMS), "files/p13/p13000032/s59999999/aaaa-bbbb.jpg"])
    result = read("mimic-cxr-lt", src, release="chexpert")
    rows = result.manifest.rows.loc[DICOMS]
    assert result.manifest.findings == CHEXPERT
    np.testing.assert_array_equal(rows["Pneumonia"], [1, 1, np.nan, 0, 0])
    np.testing.assert_array_equal(rows["No Finding"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(rows["Edema"], [0] * 5)
    assert list(rows["split"]) == ["train", "train", "train", "val", "test"]
    assert list(rows["patient_id"]) == [v[0] for v in IMAGES.values()]
    assert rows["view"].isna().all() != metadata
    assert lost(result, "image_without_label") == ["files/p13/p13000032/s59999999/aaaa-bbbb.jpg"]
    assert result.failures == 0


@pytest.mark.parametrize(("release", "labeler"), [("chexpert", "chexpert-labeler"), ("negbio", "negbio")])
def test_a_release_of_a_labeler_means_what_its_authors_say(
    touch: Any, put: Any, read: Any, release: str, labeler: str
) -> None:
    own(put, release, "split", "metadata")
    src = touch(place(d) for d in DICOMS)
    result = read("mimic-cxr-lt", src, release=release)
    report = result.summary()["labels"]
    assert (report["labeler"], report["blank"], report["uncertain"]) == (labeler, "negative", "unknown")
    assert report["source"] == f"mimic-cxr-2.0.0-{release}.csv.gz, by study"
    assert report["changed"]["-1"] == {"Pneumonia": 1}
    assert report["changed"]["blank"]["Edema"] == 5
    counts = result.manifest.counts().loc["No Finding"]
    assert (counts["positive"], counts["negative"], counts["unknown"]) == (2, 3, 0)

    rows = read("mimic-cxr-lt", src, release=release, blank="unknown", uncertain="positive").manifest.rows
    np.testing.assert_array_equal(rows["Pneumonia"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(rows["Edema"], [np.nan] * 3 + [0, 0])  # No Finding still means that it is absent
    np.testing.assert_array_equal(rows["Support Devices"], [np.nan] * 5)


def read_by_radiologist(put: Callable[..., Path], studies: list[str], **labels: list[float | None]) -> None:
    """The table of 2.1.0: no subject_id, and Airspace Opacity for Lung Opacity."""
    names = [name.replace("Lung Opacity", "Airspace Opacity") for name in CHEXPERT]
    columns = {name: labels.get(name, [None] * len(studies)) for name in names}
    put("mimic-cxr-2.1.0-test-set-labeled.csv", study_id=studies, **columns)


def test_a_radiologists_labels_are_those_of_the_test_studies(touch: Any, put: Any, read: Any) -> None:
    own(put, "chexpert", "split", "metadata")
    test_study, train_study = IMAGES[DICOMS[4]][1], IMAGES[DICOMS[0]][1]
    read_by_radiologist(
        put, [test_study, train_study, "59999999"], **{"Airspace Opacity": [1, 1, 1], "Pneumonia": [-1, 0, 1]}
    )
    src = touch(place(d) for d in DICOMS)
    plain = read("mimic-cxr-lt", src, release="chexpert")
    assert plain.manifest.rows.at[DICOMS[4], "No Finding"] == 1
    assert any("test-set-labeled.csv is not used; --test-labels radiologist" in note for note in plain.notes)

    result = read("mimic-cxr-lt", src, release="chexpert", test_labels="radiologist")
    rows = result.manifest.rows
    assert list(rows.index) == DICOMS
    assert rows.loc[DICOMS[4], ["Lung Opacity", "No Finding", "Edema"]].tolist() == [1, 0, 0]
    assert np.isnan(rows.at[DICOMS[4], "Pneumonia"])
    assert rows.loc[DICOMS[:2], ["Lung Opacity", "Pneumonia"]].to_numpy().tolist() == [[0, 1]] * 2  # train: the labeler
    assert any(n.startswith("test labels: 1 of the 3 studies of mimic-cxr-2.1.0-test-set") for n in result.notes)
    assert result.summary()["labels"]["source"].endswith("by study; test: mimic-cxr-2.1.0-test-set-labeled.csv")

    own(put, "split", "metadata")
    read_by_radiologist(put, ["59999999"])
    without = read("mimic-cxr-lt", src, release="chexpert", test_labels="radiologist")
    assert list(without.manifest.rows.index) == DICOMS[:4]  # no test set of two sources
    assert any("0 of the 1 studies" in n and "1 other test studies left out" in n for n in without.notes)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (["chexpert", "split"], {"release": "chexpert"}, r"no mimic-cxr-2\.1\.0-test-set-labeled\.csv in it or in SRC"),
        (["chexpert"], {"release": "chexpert", "table": True}, r"no mimic-cxr-2\.0\.0-split\.csv in it or in SRC"),
        (["chexpert"], {}, "--test-labels radiologist: needs --release chexpert or negbio"),
    ],
)
def test_what_a_radiologists_labels_need(
    touch: Any, put: Any, read: Any, kinds: list[str], options: dict[str, Any], message: str
) -> None:
    own(put, *kinds)
    if options.pop("table", False):
        read_by_radiologist(put, ["56699142"])
    with pytest.raises(InputError, match=message):
        read("mimic-cxr-lt", touch(place(d) for d in DICOMS), test_labels="radiologist", **options)


def test_folders_of_patients_may_be_links(touch: Any, put: Any, read: Any, tmp_path: Path) -> None:
    own(put, "chexpert", "split", "metadata")
    src = touch(place(d) for d in DICOMS)
    (src / "files").rename(tmp_path / "disk")
    (src / "files").mkdir()
    for folder in sorted((tmp_path / "disk").iterdir()):
        (src / "files" / folder.name).symlink_to(folder)
    result = read("mimic-cxr-lt", src, release="chexpert")
    assert list(result.manifest.rows["path"]) == [place(d) for d in DICOMS]
    assert not len(result.orphans)
    result.manifest.check_files()


def test_orphans_of_studies_go_both_ways(touch: Any, put: Any, read: Any, lost: Any) -> None:
    own(put, "chexpert", "split")
    result = read("mimic-cxr-lt", touch([place(DICOMS[0]), place(DICOMS[3]), "other.jpg"]), release="chexpert")
    assert lost(result, "label_without_image") == ["study 53189527", "study 56699142"]
    assert lost(result, "image_without_label") == ["other.jpg"]
    assert result.failures == 2
    own(put, "metadata")
    result = read("mimic-cxr-lt", touch([]), release="chexpert")
    assert lost(result, "label_without_image") == sorted(place(d) for d in (DICOMS[1], DICOMS[2], DICOMS[4]))


def test_other_labels_are_never_taken_without_a_word(touch: Any, put: Any, read: Any) -> None:
    own(put, "chexpert", "metadata", "split")
    put("labels/cxr_train.csv", **listed(DICOMS))
    put("cxr-study-list.csv.gz", subject_id=["1"])
    src = touch(place(d) for d in DICOMS)
    message = (
        "no label lists of release 2022 or 2023; seen and not understood: labels/cxr_train.csv; check SRC, or use "
        "--release chexpert for the study labels of mimic-cxr-2.0.0-chexpert.csv.gz"
    )
    with pytest.raises(InputError, match=message):
        read("mimic-cxr-lt", src)
    result = read("mimic-cxr-lt", src, release="chexpert")
    assert result.manifest.findings == CHEXPERT
    assert "1 table(s) not read, as the layout does not know them: labels/cxr_train.csv" in result.notes
    lists_2022(put)
    assert read("mimic-cxr-lt", src).manifest.findings == FINDINGS


def test_a_torn_published_split_is_refused_and_can_be_made_anew(touch: Any, put: Any, read: Any) -> None:
    lists_2022(put)
    put("labels/mimic-cxr-lt_single-label_balanced-val.csv", **listed(DICOMS[2:4], "Edema"))
    put("labels/mimic-cxr-lt_single-label_train.csv", **listed(DICOMS[:2]))
    src = touch(place(d) for d in DICOMS)
    with pytest.raises(InputError, match=r"is in splits train and val; .* or split again with --resplit"):
        read("mimic-cxr-lt", src)
    rows = read("mimic-cxr-lt", src, resplit=True).manifest.rows
    assert rows["split"].iloc[:3].nunique() == 1


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda put: None, {}, "no label lists of release 2022 or 2023; check SRC$"),
        (lambda put: lists_2022(put), {"release": "2023"}, "no label lists of release 2023"),
        (lambda put: own(put, "chexpert"), {"release": "negbio"}, "no mimic-cxr-2.0.0-negbio.csv"),
        (lambda put: put("mimic-cxr-lt_single-label_train.csv", id=["a"]), {}, "missing column 'dicom_id'"),
        (lambda put: put("mimic-cxr-lt_single-label_train.csv", x=["a"]), {}, "no column dicom_id or id"),
        (
            lambda put: lists_2022(put),
            {"task": "1"},
            "layout mimic-cxr-lt has no option --task; it has --labeler",
        ),
        (
            lambda put: lists_2022(put),
            {"uncertain": "maybe"},
            "--uncertain: 'maybe' is not valid; use unknown",
        ),
        (
            lambda put: [put(f"{f}/mimic-cxr-lt_single-label_train.csv", **listed(DICOMS)) for f in "ab"],
            {},
            "are the same list; give the folder of one",
        ),
        (
            lambda put: put("mimic-cxr-lt_single-label_train.csv", **listed([*DICOMS, DICOMS[0]])),
            {},
            f"uid {DICOMS[0]} has 2 rows",
        ),
    ],
)
def test_what_is_refused(touch: Any, put: Any, read: Any, spoil: Any, options: dict[str, str], message: str) -> None:
    spoil(put)
    with pytest.raises(InputError, match=message) as error:
        read("mimic-cxr-lt", touch(place(d) for d in DICOMS), **options)
    assert "\n" not in str(error.value)
