import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medlt.data.columns import SPLITS
from medlt.data.duplicates import BITS, RADIUS, ImageHash, duplicates, image_hash
from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.data.validate import ValidationReport, scan, validate

FINDINGS = ("A", "B", "No_Finding")


@pytest.fixture
def manifest(folder: Path, table: pd.DataFrame) -> Manifest:
    return Manifest(table.set_index("uid"), FINDINGS, folder)


@pytest.fixture
def sound(tmp_path: Path) -> Manifest:
    """Thirty images of thirty patients; each finding is present and absent in each split, and one label is unknown."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        pixels = ndimage.gaussian_filter(rng.random((60, 50)), 2)
        Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        split = ("train", "val", "test")[i // 10]
        rows.append({"path": f"{i}.png", "patient_id": f"p{i}", "split": split, "view": "PA"})
    labels = {name: [float(i % 3 == k) for i in range(30)] for k, name in enumerate(FINDINGS)}
    table = pd.DataFrame(rows, index=pd.Index([f"u{i}" for i in range(30)], name="uid")).assign(**labels)
    table.loc["u1", "A"] = np.nan
    return Manifest(table, FINDINGS, tmp_path)


def test_a_sound_manifest_has_no_problem(sound: Manifest) -> None:
    seen: list[tuple[str, int, int]] = []
    report = validate(sound, progress=lambda *step: seen.append(step))
    assert (report.rows, report.patients, report.problems) == (30, 30, ())
    assert (report.passed, report.failures, len(report.duplicates)) == (True, 0, 0)
    assert report.counts.loc[("train", "A")].to_dict() == {"positive": 4, "negative": 5, "unknown": 1}
    summary = json.loads(json.dumps(report.summary()))
    assert summary["counts"]["val"]["A"] == {"positive": 3, "negative": 7, "unknown": 0}
    assert all(0 < gain < 1 for gain in summary["smallest_gain"].values())
    assert seen[-1] == ("images", 30, 30)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(("value", "state"), [(1.0, "never absent"), (0.0, "never present")])
def test_a_finding_of_one_label_in_a_split_stops(sound: Manifest, split: str, value: float, state: str) -> None:
    """The labels of a tool that leaves a blank for what it does not mention have no negatives."""
    rows = sound.rows.copy()
    inside = rows["split"] == split
    rows.loc[inside, "B"] = rows.loc[inside, "B"].where(rows.loc[inside, "B"] == value)
    report = validate(Manifest(rows, FINDINGS, sound.root))
    named = [p for p in report.problems if "B" in p.what]
    if (split, value) == ("train", 0.0):
        assert [p.what.split(";")[0] for p in named] == ["finding B has no positive image in split train"]
    else:
        assert [p.what.split(";")[0] for p in named] == [f"finding B is {state} in split {split}"]
    assert [p.fatal for p in named] == [split != "val"]
    assert report.passed == (split == "val")
    assert (report.failures == 0) == (split == "val")


def copies(sound: Manifest) -> None:
    """Make u10 (val) a copy of u0 (train), u20 (test) a half-size JPEG of u1 (train), u21 (test) darker u11 (val)."""
    files = {uid: sound.file(uid) for uid in sound.rows.index}
    files["u10"].write_bytes(files["u0"].read_bytes())
    with Image.open(files["u1"]) as image:
        image.resize((25, 30), Image.Resampling.BILINEAR).save(files["u20"], format="JPEG", quality=75)
    with Image.open(files["u11"]) as image:
        image.point(lambda level: level // 2).save(files["u21"], format="PNG")
    files["u2"].write_bytes(files["u3"].read_bytes())  # within one split


@pytest.mark.parametrize("workers", [1, 3])
def test_images_of_another_patient_in_another_split_are_listed(sound: Manifest, workers: int) -> None:
    copies(sound)
    report = validate(sound, workers)
    columns = ["uid", "split", "other_uid", "other_split", "kind"]
    assert report.duplicates[columns].to_numpy().tolist() == [
        ["u10", "val", "u0", "train", "equal"],
        ["u20", "test", "u1", "train", "near"],
        ["u21", "test", "u11", "val", "near"],
    ]
    assert report.failures == 3
    assert json.loads(json.dumps(report.summary()))["duplicates"][0]["other_uid"] == "u0"
    (problem,) = report.problems
    assert "3 image(s) (2 of test, 1 of val) are also under another patient in train or val: 1 equal, 2 near" in (
        problem.what
    )
    text = shown(report)
    assert "3 image(s) that another patient has in another split" in text
    assert "u20" in text


def test_one_patient_may_have_equal_images_and_flat_images_are_no_copies(sound: Manifest) -> None:
    rows = sound.rows.copy()
    rows.loc[["u0", "u1", "u2", "u3"], "patient_id"] = "p0"
    for uid in ("u1", "u2", "u3"):
        sound.file(uid).write_bytes(sound.file("u0").read_bytes())
    for level, uid in enumerate(("u4", "u14", "u24")):
        Image.new("L", (60, 50), 80 * level).save(sound.file(uid))
    assert not len(validate(Manifest(rows, FINDINGS, sound.root)).duplicates)


@settings(max_examples=40)
@given(
    st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 7, 1000]),
    st.sampled_from([0.0, 0.02, 0.055]),
)  # fmt: skip
def test_duplicates_are_those_of_a_double_loop(seed: int, n: int, people: int, block: int, noise: float) -> None:
    """Random bits near one of three centres, so that pairs lie within, at and beyond the radius; others are far."""
    rng = np.random.default_rng(seed)
    centres = rng.random((3, BITS)) < 0.5
    bits = centres[rng.integers(3, size=n)] ^ (rng.random((n, BITS)) < noise)
    uids = [f"u{i}" for i in range(n)]
    hashes = {
        uid: ImageHash(bytes([rng.integers(n)]), b"" if rng.random() < 0.1 else np.packbits(row).tobytes())
        for uid, row in zip(uids, bits, strict=True)
    }
    rows = pd.DataFrame({"patient_id": rng.integers(people, size=n).astype(str)}, index=pd.Index(uids, name="uid"))
    rows["split"] = rng.choice(SPLITS, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medlt.data.duplicates.BLOCK", block)
        got = duplicates(rows, hashes).set_index("uid")
    expected = {}
    for i, uid in enumerate(uids):
        best = (RADIUS, "", "")
        for j, other in enumerate(uids):
            earlier = SPLITS.index(rows.at[other, "split"]) < SPLITS.index(rows.at[uid, "split"])
            if not earlier or rows.at[other, "patient_id"] == rows.at[uid, "patient_id"]:
                continue
            if hashes[other].digest == hashes[uid].digest:
                found = (-1, other, "equal")
            elif hashes[other].code and hashes[uid].code:
                found = (int((bits[j] != bits[i]).sum()), other, "near")
            else:
                continue
            if found[0] < best[0] + (not best[1]):  # the first of the nearest
                best = found
        if best[1]:
            expected[uid] = (best[1], best[2], max(best[0], 0))
    named = got[["other_uid", "kind", "distance"]].itertuples(index=False, name=None)
    assert dict(zip(got.index, named, strict=True)) == expected


@pytest.mark.parametrize("wrong", [RADIUS, RADIUS + 1])
def test_every_pair_at_the_radius_is_listed_and_none_beyond(wrong: int) -> None:
    """Each of 500 test images differs from one train image in `wrong` random bits."""
    rng, count = np.random.default_rng(0), 500
    train = rng.random((count, BITS)) < 0.5
    flips = rng.permuted(np.arange(BITS) < np.full((count, 1), wrong), axis=1)
    codes = [np.packbits(one).tobytes() for one in (*train, *(train ^ flips))]
    uids = pd.Index([f"u{i}" for i in range(2 * count)], name="uid")
    rows = pd.DataFrame({"patient_id": uids, "split": np.repeat(["train", "test"], count)}, index=uids)
    got = duplicates(rows, {uid: ImageHash(uid.encode(), code) for uid, code in zip(uids, codes, strict=True)})
    assert got["other_uid"].tolist() == (list(uids[:count]) if wrong == RADIUS else [])
    assert set(got["distance"]) <= {RADIUS}


@pytest.mark.real_data
def test_films_of_two_patients_are_no_copies_and_copies_are(real_data: Path) -> None:
    """No film of ChestX-ray14 is another patient's; the distance to the nearest is nearly twice the radius."""
    files = sorted((real_data / "nih14" / "images").glob("*.png"))[::4]
    codes, patients, lost = [], [], 0
    for file in files:
        pixels = read_image(file)
        code = np.unpackbits(np.frombuffer(image_hash(pixels).code, np.uint8), count=BITS)
        for changed in (pixels**1.3, pixels[1::2, 1::2], pixels[:, 2:-2] * 0.7 + 0.1):
            other = np.unpackbits(np.frombuffer(image_hash(changed.astype(np.float32)).code, np.uint8), count=BITS)
            lost += (code != other).sum() > RADIUS
        codes.append(code * 2.0 - 1)
        patients.append(file.name.split("_")[0])
    bits, owner = np.array(codes), np.array(patients)
    distance = (BITS - bits @ bits.T) / 2
    assert distance[owner[:, None] != owner[None, :]].min() > 1.5 * RADIUS
    assert lost <= 0.02 * 3 * len(files)


def shown(report: ValidationReport) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(report.table())
    return " ".join(console.export_text().split())


@pytest.mark.parametrize("workers", [1, 3])
def test_scan_lists_every_bad_file_with_its_reason_in_order(manifest: Manifest, workers: int) -> None:
    manifest.file("u4").unlink()
    manifest.file("u1").write_bytes(manifest.file("u1").read_bytes()[:60])
    manifest.file("u2").write_text("not an image " * 30)
    with warnings.catch_warnings(record=True) as filters:
        failures = scan(manifest, workers)
    assert list(failures["uid"]) == ["u1", "u2", "u4"]
    assert list(failures["code"]) == ["corrupt", "not_dicom", "missing"]
    assert not failures["reason"].str.contains("\n").any()
    assert not filters


def test_scan_puts_the_callers_warning_filters_back(manifest: Manifest) -> None:
    before = list(warnings.filters)
    scan(manifest, 4)
    assert list(warnings.filters) == before


def test_some_bad_files_are_told_all_bad_files_stop(manifest: Manifest) -> None:
    manifest.file("u4").unlink()
    some = validate(manifest)
    assert some.problems[0].fatal is False
    assert len(some.unreadable) == 1
    assert "1 of 6 files cannot be read; first:" in some.problems[0].what
    for uid in manifest.rows.index:
        manifest.file(uid).unlink(missing_ok=True)
    assert not validate(manifest).passed


def test_the_last_positive_in_a_damaged_file_counts_as_none(manifest: Manifest) -> None:
    manifest.file("u2").write_text("not an image " * 30)
    report = validate(manifest)
    assert not report.passed
    assert any("finding B has no positive image in split train" in p.what for p in report.problems)


def test_laterals_among_frontal_images_are_a_note(manifest: Manifest) -> None:
    note = "1 of 6 images are lateral, 1 of unknown view; `medlt manifest ... --view frontal` leaves both out"
    assert (note, False) in [(p.what, p.fatal) for p in validate(manifest).problems]


def test_rows_at_zero_and_rows_unknown_are_counted(folder: Path, table: pd.DataFrame) -> None:
    table.loc[2, ["A", "B", "No_Finding"]] = 0.0
    table.loc[0, "B"] = 1.0
    table.loc[4, ["A", "B", "No_Finding"]] = np.nan
    report = validate(Manifest(table.assign(view="PA").set_index("uid"), FINDINGS, folder))
    assert (report.all_zero, report.unlabelled) == (1, 1)
    notes = [p.what.split(";")[0] for p in report.problems if "row(s)" in p.what]
    assert sorted(notes) == [
        "1 row(s) with every finding, no-finding included, at 0",
        "1 row(s) without any known label",
    ]


def test_the_table_shows_counts_and_problems(manifest: Manifest) -> None:
    manifest.file("u4").unlink()
    text = shown(validate(manifest))
    assert "2 / 1 / 1" in text
    assert "note: 1 of 6 files" in text


def test_a_finding_of_one_source_is_a_warning(manifest: Manifest) -> None:
    rows = pd.concat([manifest.rows] * 5)
    rows.index = pd.Index([f"{uid}-{n}" for n, uid in enumerate(rows.index)], name="uid")
    source = np.where(rows["A"] == 1, "a", "b")
    told = validate(Manifest(rows.assign(source=source), FINDINGS, manifest.root)).problems
    marked = [p for p in told if p.what.startswith("A goes with the source: 100% of its")]
    assert [p.fatal for p in marked] == [False]
    other = validate(Manifest(rows.assign(source=["a", "b"] * 15), FINDINGS, manifest.root)).problems
    assert not [p for p in other if "goes with the source" in p.what]
