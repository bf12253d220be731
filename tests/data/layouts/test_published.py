"""Layouts of CheXpert, PadChest, VinDr-CXR, RSNA and SIIM on tables and trees in exactly the published form."""

import json
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from medlt.api.collection import Collection
from medlt.cli import app
from medlt.data.boxes import add_boxes
from medlt.data.layouts.chexpert import FINDINGS as CHEXPERT
from medlt.data.layouts.padchest_tree import CHILDREN
from medlt.data.layouts.run_lengths import decoded
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions
from medlt.types import InputError

EACH = {"patient": "(.+)"}


# ------------------------------------------------------------------ CheXpert
def small(patient: int, view: str, part: str = "train") -> str:
    return f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/view1_{view}.jpg"


@pytest.fixture
def chexpert(touch: Any, put: Any) -> Path:
    """CheXpert-v1.0-small: train of two patients with three images, valid of one."""
    train = [small(1, "frontal"), small(2, "frontal"), small(2, "lateral")]
    src: Path = touch([*train, small(64541, "frontal", "valid")])

    def table(paths: list[str], **labels: list[float]) -> dict[str, Any]:
        n = len(paths)
        views = ["Lateral" if "lateral" in path else "Frontal" for path in paths]
        return {
            "Path": paths, "Sex": ["Female", "Male", "Unknown"][:n], "Age": [68, 87, 0][:n], "Frontal/Lateral": views,
            "AP/PA": ["AP" if view == "Frontal" else None for view in views],
            **{name: labels.get(name, [np.nan] * n) for name in CHEXPERT},
        }  # fmt: skip

    put("CheXpert-v1.0-small/train.csv", **table(train, Edema=[1.0, -1.0, 0.0], Fracture=[0.0, np.nan, 1.0]))
    put("CheXpert-v1.0-small/valid.csv", **table([small(64541, "frontal", "valid")], Edema=[1.0], Fracture=[0.0]))
    return src


@pytest.mark.parametrize("below", ["", "CheXpert-v1.0-small"])
def test_chexpert_by_the_end_of_the_path(chexpert: Path, read: Any, below: str) -> None:
    result = read("chexpert", chexpert / below)
    rows = result.manifest.rows
    assert result.manifest.findings == CHEXPERT
    uids = ["patient00001_study1_view1_frontal", "patient00002_study1_view1_frontal"]
    assert list(rows.index) == [*uids, "patient00002_study1_view1_lateral", "patient64541_study1_view1_frontal"]
    assert list(rows["patient_id"]) == ["patient00001", "patient00002", "patient00002", "patient64541"]
    assert list(rows["split"]) == ["train", "train", "train", "val"]
    assert list(rows["view"]) == ["AP", "AP", "LATERAL", "AP"]
    assert rows["sex"].tolist()[:2] == ["F", "M"]
    np.testing.assert_array_equal(rows["Edema"], [1, np.nan, 0, 1])
    np.testing.assert_array_equal(rows["Fracture"], [0, 0, 1, 0])  # its labeler leaves blank what it does not mention
    raw = read("chexpert", chexpert / below, blank="unknown").manifest.rows
    np.testing.assert_array_equal(raw["Fracture"], [0, np.nan, 1, 0])
    assert not len(result.orphans)
    result.manifest.check_files()
    assert any("no image has split test" in note for note in result.notes)


def test_chexpert_plus_joins_its_label_file_and_png_images(touch: Any, put: Any, read: Any) -> None:
    paths = [f"train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2)]
    src = touch([f"PNG/{path[:-4]}.png" for path in paths])
    put("df_chexpert_plus_240401.csv", path_to_image=paths, frontal_lateral=["Frontal"] * 2, ap_pa=["PA", "AP"],
        deid_patient_id=["patient00001", "patient00002"], report=["a", "b"], age=[40, 50], sex=["Male", "Female"],
        split=["train", "valid"])  # fmt: skip
    with pytest.raises(InputError, match=r"no label file; give one with --labels, such as impression_fixed\.json"):
        read("chexpert", src)
    for section, edema in (("impression", [None, 1.0]), ("findings", [0.0, 0.0])):
        lines = [
            json.dumps({"path_to_image": path, **dict.fromkeys(CHEXPERT), "Edema": value})
            for path, value in zip(paths, edema, strict=True)
        ]
        (src / f"{section}_fixed.json").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"labels of findings_fixed.json and impression_fixed.json; choose one"):
        read("chexpert", src)
    result = read("chexpert", src, labels=src / "impression_fixed.json", all_zero="keep")
    rows = result.manifest.rows
    np.testing.assert_array_equal(rows["Edema"], [0, 1])
    assert rows[["split", "view", "sex"]].to_numpy().tolist() == [["train", "PA", "M"], ["val", "AP", "F"]]
    assert list(rows["path"]) == [f"PNG/{path[:-4]}.png" for path in paths]
    assert "tables that were not read: findings_fixed.json" in result.notes


def test_chexpert_without_its_tables(touch: Any, put: Any, read: Any) -> None:
    with pytest.raises(InputError, match=r"no train\.csv, valid\.csv or df_chexpert_plus"):
        read("chexpert", touch(["x.png"]))
    put("train.csv", Path=["a/b.jpg"], Edema=[1])
    with pytest.raises(InputError, match=r"'a/b.jpg' does not end in patientN/studyN/VIEW"):
        read("chexpert", touch(["x.png"]))


# ------------------------------------------------------------------ PadChest
def padchest(touch: Any, put: Any, labels: list[str | None]) -> Path:
    names = [f"2168401113669640_0{n}.png" for n in range(len(labels))]
    src: Path = touch([f"{n}/{name}" for n, name in enumerate(names)])
    put("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", ImageID=names, ImageDir=range(len(names)),
        StudyDate_DICOM=20140915, StudyID="209", PatientID=[f"0{n}" for n in range(len(names))], PatientBirth=1930.0,
        PatientSex_DICOM="F", Projection=(["PA", "L", "AP_horizontal", "COSTAL", "EXCLUDE"] * 2)[: len(names)],
        MethodLabel=["Physician"] + ["RNN_model"] * (len(names) - 1), Labels=labels)  # fmt: skip
    return src


def test_padchest_lists(touch: Any, put: Any, read: Any, positives: Any) -> None:
    lists = ["['pneumonia', ' loc right', 'pneumonia']", "['normal']", None, "['', 'unchanged']", "['exclude']"]
    result = read("padchest", padchest(touch, put, lists))
    assert result.manifest.findings == ("loc right", "normal", "pneumonia")
    assert list(positives(result).values()) == [{"pneumonia", "loc right"}, {"normal"}, set(), set()]
    rows = result.manifest.rows
    assert rows.iloc[2:][["normal", "pneumonia"]].isna().all(axis=None)
    assert list(rows["patient_id"]) == ["00", "01", "02", "03"]
    assert list(rows["view"]) == ["PA", "LATERAL", "AP", "COSTAL"]
    assert list(rows["path"]) == [f"{n}/2168401113669640_0{n}.png" for n in range(4)]
    assert rows["age"].tolist() == [84.0] * 4
    assert "1 image(s) with the label 'exclude', left out" in result.notes
    assert "labels by MethodLabel: RNN_model 3, Physician 1" in result.notes
    chosen = read("padchest", padchest(touch, put, lists), findings="Pneumonia,normal")
    assert chosen.manifest.findings == ("pneumonia", "normal")
    assert chosen.manifest.no_finding == "normal"


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["pneumonia"], {}, r"Labels of 2168401113669640_00.png is 'pneumonia', not a list"),
        (["['unchanged']"], {}, "no image has a label"),
        (["['pneumonia']"], {"findings": "pnuemonia"}, "no image has the label 'pnuemonia'; did you mean 'pneumonia'"),
    ],
)
def test_padchest_mistakes(touch: Any, put: Any, read: Any, labels: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("padchest", padchest(touch, put, labels), **options)


def test_a_label_implies_those_above_it_in_the_tree(touch: Any, put: Any, read: Any, positives: Any) -> None:
    lists = ["['hydropneumothorax']", "['air bronchogram']", "['callus rib fracture', 'rib fracture']",
             "['adenopathy']", "['hiatal hernia']", "['normal']", None]  # fmt: skip
    src = padchest(touch, put, lists)
    result = read("padchest", src, all_zero="keep")
    assert list(positives(result).values()) == [
        {"hydropneumothorax", "pneumothorax", "pleural effusion"},
        {"air bronchogram", "alveolar pattern", "infiltrates"},  # not always in a consolidation
        {"callus rib fracture", "rib fracture", "fracture"},
        {"adenopathy"},  # not always hilar
        {"hiatal hernia"},
        {"normal"},
        set(),
    ]
    assert result.manifest.rows.iloc[6][list(result.manifest.findings)].isna().all()
    note = next(note for note in result.notes if "implied by the tree" in note)
    assert "pleural effusion 1" in note
    assert "rib fracture" not in note  # its list names it
    few = read("padchest", src, findings="pleural effusion,fracture", all_zero="keep")
    assert few.manifest.rows.iloc[0]["pleural effusion"] == 1
    plain = read("padchest", src, tree="ignored")
    assert positives(plain)[plain.manifest.rows.index[0]] == {"hydropneumothorax"}


def test_the_tree_of_labels_has_one_spelling_and_no_circle() -> None:
    for parent, children in CHILDREN.items():
        assert len(set(children)) == len(children)
        assert all(name == name.strip().lower() and "," not in name for name in (parent, *children))
    order = list(TopologicalSorter(CHILDREN).static_order())
    assert all(order.index(child) < order.index(parent) for parent in CHILDREN for child in CHILDREN[parent])


# ------------------------------------------------------------------ VinDr-CXR
@pytest.fixture
def vindr(touch: Any, put: Any) -> Path:
    """Three readers of two train images, one test image; the last train image has two readers, who differ."""
    src: Path = touch(["train/a.dicom", "train/b.dicom", "train/c.dicom", "test/d.dicom"])
    put("annotations/image_labels_train.csv", image_id=[*"aaabbbcc"], rad_id=[f"R{n}" for n in "12312389"],
        **{"Nodule/Mass": [1, 1, 0, 0, 0, 1, 1, 0], "Other diseases": [0] * 8,
           "No finding": [0, 0, 1, 1, 1, 0, 0, 0]})  # fmt: skip
    put("annotations/image_labels_test.csv", image_id=["d"],
        **{"Nodule/Mass": [1], "Other disease": [1], "No finding": [0]})  # fmt: skip
    return src


def test_vindr_readers(vindr: Path, read: Any) -> None:
    with pytest.raises(InputError, match=r"names no patient; give --patient .* '\(\.\+\)'"):
        read("vindr", vindr)
    result = read("vindr", vindr, **EACH, all_zero="keep")
    rows = result.manifest.rows
    assert result.manifest.findings == ("Nodule/Mass", "Other diseases", "No finding")
    np.testing.assert_array_equal(rows["Nodule/Mass"], [1, 0, np.nan, 1])
    np.testing.assert_array_equal(rows["Other diseases"], [0, 0, 0, 1])
    assert set(rows["split"][:3]) <= {"train", "val"}
    assert rows["split"].iloc[3] == "test"
    assert any("majority of up to 3 readers, 1 tied label(s) unknown" in note for note in result.notes)
    assert any(note.startswith("each image counts as a patient of its own") for note in result.notes)
    any_of = read("vindr", vindr, **EACH, readers="any", all_zero="keep").manifest.rows
    np.testing.assert_array_equal(any_of["Nodule/Mass"], [1, 1, 1, 1])
    with pytest.raises(
        InputError, match="--readers: mean gives soft labels, which real images cannot have; use majority or any"
    ):
        read("vindr", vindr, **EACH, readers="mean")


def test_boxes_of_vindr_and_their_readers(vindr: Path, put: Any, read: Any, write_dicom: Any) -> None:
    write_dicom(np.zeros((100, 200), np.uint16)).rename(vindr / "train" / "a.dicom")
    table = put("annotations/annotations_train.csv", image_id=["a", "a", "b", "z"], rad_id=["R1", "R2", "R1", "R1"],
                class_name=["Nodule/Mass", "Nodule/Mass", "No finding", "Nodule/Mass"], x_min=[20, 40, None, 1],
                y_min=[10, 10, None, 1], x_max=[60, 60, None, 2], y_max=[30, 50, None, 2])  # fmt: skip
    result = add_boxes(read("vindr", vindr, **EACH, all_zero="keep"), table)
    # 200 x 100 px in a square of 200: 50 px above and below
    np.testing.assert_allclose(result.manifest.rows.at["a", "box_Nodule/Mass"],
                               [0.1, 0.3, 0.3, 0.4, 0.2, 0.3, 0.3, 0.5])  # fmt: skip
    assert list(result.orphans.loc[result.orphans["kind"] == "box_without_image", "uid"]) == ["z"]


def test_the_challenge_on_kaggle(touch: Any, put: Any, read: Any, write_dicom: Any) -> None:
    """Image a: two of three readers see a nodule, one of them in two boxes; b: nobody sees anything; c: one reader."""
    src = touch(["train/b.dicom"])
    for name in "ac":
        write_dicom(np.zeros((100, 100), np.uint16)).rename(src / "train" / f"{name}.dicom")
    table = put("train.csv", image_id=[*"aaaabbbc"], class_name=["Nodule/Mass", "Nodule/Mass", "Nodule/Mass",
                "No finding", *["No finding"] * 3, "Aortic enlargement"], class_id=[8, 8, 8, 14, 14, 14, 14, 0],
                rad_id=["R1", "R1", "R2", "R3", "R1", "R2", "R3", "R9"], x_min=[10, 20, 10, *[None] * 4, 1],
                y_min=[10, 20, 10, *[0] * 4, 1], x_max=[20, 30, 20, *[None] * 4, 2],
                y_max=[20, 30, 20, *[1] * 4, 2])  # fmt: skip
    with pytest.raises(InputError, match=r"train\.csv: names no patient"):
        read("vindr", src)
    result = read("vindr", src, **EACH)
    rows = result.manifest.rows
    assert result.manifest.findings == ("Aortic enlargement", "No finding", "Nodule/Mass")
    assert rows[list(result.manifest.findings)].to_numpy().tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert "train.csv: 3 images, majority of up to 3 readers" in result.notes
    assert any(note.startswith("split by patient") for note in result.notes)
    boxes = add_boxes(result, table).manifest.rows
    np.testing.assert_allclose(
        boxes.at["a", "box_Nodule/Mass"], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.1, 0.1, 0.2, 0.2]
    )
    assert "box_No finding" not in boxes


# ------------------------------------------------------------------ RSNA
@pytest.fixture
def rsna(touch: Any, put: Any) -> Path:
    """Image a with two boxes, b and c without; c is normal."""
    src: Path = touch([f"stage_2_train_images/{name}.dcm" for name in "abc"])
    put("stage_2_train_labels.csv", patientId=[*"aabc"], x=[264, 562, None, None], y=[152, 152, None, None],
        width=[213, 256, None, None], height=[379, 453, None, None], Target=[1, 1, 0, 0])  # fmt: skip
    put("stage_2_detailed_class_info.csv", patientId=[*"aabc"],
        **{"class": ["Lung Opacity", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]})  # fmt: skip
    return src


def test_rsna_classes_boxes_and_patients(rsna: Path, read: Any, positives: Any) -> None:
    with pytest.raises(InputError, match="names no patient"):
        read("rsna", rsna)
    result = add_boxes(read("rsna", rsna, **EACH), rsna / "stage_2_train_labels.csv")
    assert list(positives(result).values()) == [{"Lung Opacity"}, {"No Lung Opacity / Not Normal"}, {"Normal"}]
    assert result.manifest.no_finding == "Normal"
    corners = np.array([264, 152, 264 + 213, 152 + 379, 562, 152, 562 + 256, 152 + 453]) / 1024
    np.testing.assert_allclose(result.manifest.rows.at["a", "box_Lung Opacity"], corners)
    mapping = [{"subset_img_id": one, "img_id": f"0000000{n}_001.png"} for one, n in zip("abc", (7, 7, 8), strict=True)]
    (rsna / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    assert list(read("rsna", rsna).manifest.rows["patient_id"]) == ["7", "7", "8"]
    (rsna / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping[:2]))
    with pytest.raises(InputError, match="names no patient of c; give --patient"):
        read("rsna", rsna)


def test_rsna_without_classes_or_with_others(rsna: Path, put: Any, read: Any) -> None:
    put("stage_2_detailed_class_info.csv", patientId=[*"abc"], **{"class": ["Normal", "Normal", "Normal"]})
    with pytest.raises(InputError, match="class of a contradicts its Target"):
        read("rsna", rsna, **EACH)
    (rsna / "stage_2_detailed_class_info.csv").unlink()
    result = read("rsna", rsna, **EACH)
    assert result.manifest.rows["Lung Opacity"].tolist() == [1, 0, 0]
    assert "2 row(s) with every finding at 0, kept" in result.notes


# ------------------------------------------------------------------ SIIM
def test_siim_counts_an_image_once(touch: Any, read: Any) -> None:
    src = touch([f"dicom-images-train/1.{n}/1.{n}.1/1.2.{n}.dcm" for n in range(3)])
    (src / "train-rle.csv").write_text("ImageId, EncodedPixels\n1.2.0, -1\n1.2.1, 10 4 5 6\n1.2.1, 90 3\n1.2.2,-1\n")
    result = read("siim", src, **EACH)
    assert result.manifest.rows["Pneumothorax"].to_dict() == {"1.2.0": 0, "1.2.1": 1, "1.2.2": 0}
    assert result.failures == 0
    with pytest.raises(InputError, match=r"train-rle\.csv: names no patient"):
        read("siim", src)


def encoded(mask: np.ndarray) -> str:
    """The pixels down the columns one by one, as the challenge's own encoder walks them."""
    numbers, skipped, covered = list[int](), 0, 0
    for pixel in [*mask.T.ravel().tolist(), False]:
        if pixel:
            covered += 1
        elif covered:
            numbers += [skipped, covered]
            skipped, covered = 1, 0
        else:
            skipped += 1
    return " ".join(map(str, numbers))


@settings(max_examples=10)
@given(st.lists(st.tuples(*[st.integers(0, 1023)] * 2, *[st.integers(1, 400)] * 2), min_size=1, max_size=4))
def test_a_mask_of_run_lengths_is_the_one_that_was_encoded(parts: list[tuple[int, int, int, int]]) -> None:
    masks = []
    for top, left, high, wide in parts:
        masks.append(np.zeros((1024, 1024), bool))
        masks[-1][top : top + high, left : left + wide] = True
    np.testing.assert_array_equal(decoded([encoded(one) for one in masks]), np.logical_or.reduce(masks))


@pytest.fixture
def siim(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Two images of 64 px and one of 1024 px, the first and the last with a mask, which is returned."""
    mask = np.zeros((1024, 1024), bool)
    mask[160:480, 32:64] = True
    for n, side in enumerate((64, 64, 1024)):
        place = tmp_path / "src" / "dicom-images-train" / f"1.{n}"
        place.mkdir(parents=True)
        Image.fromarray(np.zeros((side, side), np.uint8)).save(place / f"1.2.{n}.png")
    half = np.where(np.arange(1024)[:, None] < 300, mask, False)
    text = f"1.2.0, {encoded(half)}\n1.2.0, {encoded(mask & ~half)}\n1.2.1, -1\n1.2.2, {encoded(mask)}\n"
    (tmp_path / "src" / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{text}")
    return tmp_path / "src", mask


def test_masks_of_siim_are_written_where_the_user_wants_them(siim: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    src, mask = siim
    command = ["manifest", "siim", str(src), str(tmp_path / "m.parquet"), "--patient", "(.+)", "--masks"]
    for folder in ("masks", "src/masks"):
        for _ in range(2):  # the second time they are there, and are no images
            done = CliRunner().invoke(app, [*command, str(tmp_path / folder)])
            assert done.exit_code == 0, done.stderr
        assert "more than once" not in done.stdout
        assert "image without label" not in done.stdout
        manifest = Manifest.read(tmp_path / "m.parquet")
        regions = Regions.of(manifest)
        regions.check()
        assert regions.known("Pneumothorax") == ("1.2.0", "1.2.2")
        np.testing.assert_array_equal(regions.pixels("1.2.2", "Pneumothorax", 1024), mask)
        np.testing.assert_array_equal(regions.pixels("1.2.0", "Pneumothorax", 64), mask[8::16, 8::16])
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["1.2.0.png", "1.2.2.png"]
        (tmp_path / "m.parquet").unlink()
    (tmp_path / "masks" / "1.2.0.png").write_bytes(b"mine")
    done = CliRunner().invoke(app, [*command, str(tmp_path / "masks")])
    assert done.exit_code == 2
    assert "1.2.0.png: exists with other contents" in done.stderr
    assert not (tmp_path / "m.parquet").exists()
    assert (tmp_path / "masks" / "1.2.0.png").read_bytes() == b"mine"
    made = Collection.from_layout("siim", src, patient="(.+)", masks=tmp_path / "api")
    assert set(made.manifest.masks()) == {"1.2.0", "1.2.2"}
    made.manifest.check_files()


@pytest.mark.parametrize(
    ("code", "message"),
    [("7", "a run needs two numbers"), ("1 x", "EncodedPixels of 1.2.0"), ("0 1048577", "a run is outside 1024 x 1024"),
     ("5 0", "a run is outside"), ("-3 9", "a run is outside"), ("", "EncodedPixels of 1.2.0 is blank; write -1")],
)  # fmt: skip
def test_masks_that_are_no_run_lengths(siim: tuple[Path, np.ndarray], read: Any, code: str, message: str) -> None:
    (siim[0] / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n1.2.0,{code}\n1.2.1,-1\n1.2.2,-1\n")
    with pytest.raises(InputError, match=message) as error:
        read("siim", siim[0], **EACH, masks=siim[0] / "masks")
    assert "\n" not in str(error.value)
    assert not (siim[0] / "masks").exists()


# ------------------------------------------------------------------ read by the layout csv
def test_brax_and_cxr_lt_2026_by_the_layout_csv(touch: Any, put: Any, read: Any) -> None:
    path = "images/id_1/Study_2.3/Series_4.5/image-6.7.png"
    touch([path, "p/im0.png", "p/im1.png"])
    table = put("master_spreadsheet_update.csv", PngPath=[path], PatientID=["id_1"], ViewPosition=["PA"],
                Edema=[-1], Fracture=[1], **{"No Finding": [None]})  # fmt: skip
    names = ["path=PngPath", "patient_id=PatientID", "view=ViewPosition"]
    rows = read("csv", table, column=names, findings="Edema,Fracture,No Finding", blank="negative").manifest.rows
    assert rows.loc["image-6.7", ["view", "patient_id", "Fracture"]].tolist() == ["PA", "id_1", 1]
    table = put("train.csv", ImageID=["im0.png", "im1.png"], Atelectasis=[1, 0], Normal=[0, 1])
    result = read("csv", table, column=["uid=ImageID"], findings="Atelectasis,Normal", **EACH)
    assert list(result.manifest.rows["path"]) == ["p/im0.png", "p/im1.png"]
    assert any(note.startswith("each image counts as a patient of its own") for note in result.notes)


def test_a_finding_with_a_slash_is_written_and_read(vindr: Path, read: Any, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "test/d"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(vindr / f"{name}.png")
    result = read("vindr", vindr, **EACH, all_zero="keep")
    result.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").findings == result.manifest.findings
