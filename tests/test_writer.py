import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image

from medlt._version import __version__
from medlt.data.images import read_image
from medlt.data.manifest import Manifest
from medlt.types import Batch, CheckResult, InputError
from medlt.writer import DatasetWriter, digest_rows, metadata, png, synthetic_png, to_uint8, write_dicom, write_metadata

RUN = "fedcba9876543210"


def batch(n: int = 3) -> Batch:
    uids = pd.Index([f"u{i}" for i in range(n)], name="uid")
    rows = pd.DataFrame({"seed": range(n), "parents": [["Viral Pneumonia-1", "a, b"]] * n}, index=uids)
    labels = pd.DataFrame({"Mass": [1.0, np.nan, 0.25][:n]}, index=uids)
    images = torch.arange(n * 16, dtype=torch.float32).reshape(n, 1, 4, 4) / (n * 16)
    return Batch(rows, images, labels)


def writer(place: Path) -> DatasetWriter:
    return DatasetWriter(place, models="0123456789abcdef", run_id=RUN)


def results(one: DatasetWriter) -> pd.DataFrame:
    one.write_results(one.folder / "checks.parquet")
    return pd.read_parquet(one.folder / "checks.parquet")


def test_rounding_is_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 255
    assert (to_uint8(levels).ravel() == np.arange(256)).all()
    assert to_uint8(torch.full((1, 1, 1, 1), 2.0)).item() == 255


def test_png_gives_the_pixels_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(pixels)))) == pixels).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_never_written(tmp_path: Path, bad: float) -> None:
    made = batch()
    made.images[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        writer(tmp_path).write(made.rows, made, [], ["u0", "u1"])
    assert not writer(tmp_path).has(made.rows)
    writer(tmp_path).write(made.rows, made, [], ["u0"])
    assert [p.name for p in (tmp_path / "stages" / "shards").glob("*/*/images/*")] == ["u0.png"]


def test_kept_images_have_their_own_rows_and_rejects_their_reasons(tmp_path: Path) -> None:
    one, made = writer(tmp_path), batch()
    findings = [CheckResult("judge", u, 0.1 * i, 0.15, i > 1, "why") for i, u in enumerate(made.rows.index)]
    assert not one.has(made.rows)
    one.write(made.rows, made, findings, ["u2"])
    assert one.has(made.rows)
    kept = one.kept()
    one.publish(kept.index)
    assert kept.index.tolist() == ["u2"]
    assert kept.loc["u2", "Mass"] == 0.25
    assert kept.loc["u2", "parents"] == ["Viral Pneumonia-1", "a, b"]
    assert (np.asarray(Image.open(tmp_path / kept.loc["u2", "path"])) == to_uint8(made.images)[2]).all()
    assert results(one).query("not passed")["uid"].tolist() == ["u0", "u1"]


def test_a_shard_is_made_once_and_found_by_another_process(tmp_path: Path) -> None:
    calls = []

    def make() -> tuple[Batch, list[CheckResult], list[str]]:
        calls.append(1)
        return batch(), [], ["u1"]

    for _ in range(2):
        one = writer(tmp_path)
        one.shard(batch().rows, make)
        assert one.kept().index.tolist() == ["u1"]
    assert len(calls) == 1


def test_rows_of_another_plan_and_other_models_are_other_shards(tmp_path: Path) -> None:
    made = batch()
    writer(tmp_path).write(made.rows, made, [], ["u0"])
    others = (
        made.rows.assign(seed=[0, 1, 3]),
        made.rows.assign(parents=[["Viral", "Pneumonia-1"], ["a, b"], []]),
        made.rows.rename(index={"u2": "u3"}),
        made.rows.iloc[::-1],
        made.rows.iloc[:2],
        made.rows.assign(q=0.1),
    )
    assert writer(tmp_path).has(made.rows)
    assert not any(writer(tmp_path).has(rows) for rows in others)
    assert not DatasetWriter(tmp_path, models="another denoiser", run_id=RUN).has(made.rows)
    assert not DatasetWriter(tmp_path, models="0123456789abcdef", run_id="another run").has(made.rows)
    assert writer(tmp_path).kept().empty


def test_only_shards_of_the_plan_in_hand_are_read_and_in_its_order(tmp_path: Path) -> None:
    made = batch()
    parts = [Batch(made.rows.iloc[[i]], made.images[[i]], made.labels.iloc[[i]]) for i in range(3)]
    for part in parts:
        found = [CheckResult("finite", str(part.rows.index[0]), 0.0, 0.0, True)]
        writer(tmp_path).write(part.rows, part, found, list(part.rows.index))
    one = writer(tmp_path)
    assert one.has(parts[2].rows)
    assert one.has(parts[0].rows)
    assert one.kept().index.tolist() == results(one)["uid"].tolist() == ["u2", "u0"]
    assert torch.equal(one.read(["u0", "u2", "u0"])[:, 0], torch.from_numpy(to_uint8(made.images[[0, 2, 0]])))
    with pytest.raises(KeyError):
        one.read(["u1"])


@pytest.mark.parametrize("group", [1, 2, 3])
def test_tables_do_not_depend_on_how_many_shards_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """Five shards: one without results, one without kept images, one whose only label is unknown."""
    uids = pd.Index([f"u{i}" for i in range(10)], name="uid")
    rows = pd.DataFrame({"seed": np.arange(10) + 2**62, "parents": [["a"], []] * 5, "view": ["PA", None] * 5}, uids)
    labels = pd.DataFrame({"Mass": [np.nan] * 2 + [0.25] * 8}, uids)
    made, one, checked = Batch(rows, torch.rand(10, 1, 4, 4), labels), writer(tmp_path), []
    for i in range(0, 10, 2):
        part = Batch(rows.iloc[i : i + 2], made.images[i : i + 2], labels.iloc[i : i + 2])
        found = [CheckResult("finite", str(uid), i / 3, 1.0, i < 4, "" if i < 4 else "why") for uid in part.rows.index]
        checked += found if i != 6 else []
        one.write(part.rows, part, found if i != 6 else [], list(part.rows.index)[: 0 if i == 2 else 2])
    twin = CheckResult("copy", "u9", -1.0, 0.995, True)
    monkeypatch.setattr("medlt.writer.GROUP", group)
    expected = rows.join(labels).assign(path=[f"images/{uid}.png" for uid in uids]).drop(["u2", "u3"])
    pd.testing.assert_frame_equal(one.kept(), expected)
    one.write_results(tmp_path / "checks.parquet", [twin])
    written = pd.DataFrame([vars(result) for result in [*checked, twin]])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "checks.parquet"), written)
    before = (tmp_path / "checks.parquet").read_bytes()
    one.write_results(tmp_path / "checks.parquet", [twin])
    assert (tmp_path / "checks.parquet").read_bytes() == before


def test_results_of_no_shard_are_a_table_without_rows(tmp_path: Path) -> None:
    assert list(results(writer(tmp_path))) == ["check", "uid", "value", "limit", "passed", "reason"]
    assert not len(results(writer(tmp_path)))


def test_the_order_is_the_plans_although_a_later_shard_is_there_already(tmp_path: Path) -> None:
    made = batch()
    parts = [Batch(made.rows.iloc[[i]], made.images[[i]], made.labels.iloc[[i]]) for i in range(2)]
    writer(tmp_path).write(parts[1].rows, parts[1], [], ["u1"])
    one = writer(tmp_path)
    assert [one.has(part.rows) for part in parts] == [False, True]
    one.write(parts[0].rows, parts[0], [], ["u0"])
    assert one.kept().index.tolist() == ["u0", "u1"]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["images/u1.png", "kept.parquet", "checks.parquet", "artifact.json"])
@pytest.mark.parametrize(
    "damage", [flip, lambda file: os.truncate(file, 9), lambda file: os.truncate(file, 0), Path.unlink]
)
def test_a_damaged_shard_is_named_set_aside_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], name: str
) -> None:
    made, one = batch(), writer(tmp_path)
    one.write(made.rows, made, [], ["u0", "u1"])
    whole, images = one.kept(), one.read(["u0", "u1"])
    (shard,) = (tmp_path / "stages" / "shards").glob("*/*/images")
    damage(shard.parent / name)
    again = writer(tmp_path)
    assert not again.has(made.rows)
    assert f"{name} is damaged" in caplog.text
    again.write(made.rows, made, [], ["u0", "u1"])
    pd.testing.assert_frame_equal(again.kept(), whole)
    assert torch.equal(again.read(["u0", "u1"]), images)


def test_damage_while_a_run_uses_a_shard_ends_it_in_one_line(tmp_path: Path) -> None:
    made, one = batch(), writer(tmp_path)
    one.write(made.rows, made, [], ["u0"])
    flip(next((tmp_path / "stages").rglob("u0.png")))
    for use in (one.kept, lambda: one.read(["u0"]), lambda: one.publish(["u0"])):
        with pytest.raises(InputError, match="damaged while in use; run the same command again") as told:
            use()
        assert "\n" not in str(told.value)


def test_a_batch_of_other_rows_is_refused(tmp_path: Path) -> None:
    made = batch()
    with pytest.raises(ValueError, match="the batch has other rows than the plan"):
        writer(tmp_path).write(made.rows.iloc[::-1], made, [], ["u0"])


def test_seeds_are_the_plans_bit_for_bit_in_every_table(tmp_path: Path) -> None:
    made = batch()
    made.rows["seed"] = [2**63 - 1, 2**62 + 1, 2**53 + 1]
    made.rows["fold"] = np.array([0, 1, 2], np.int64)
    one = writer(tmp_path)
    one.write(made.rows, made, [], ["u0", "u2"])
    kept = one.kept()
    one.publish(kept.index)
    assert (kept["seed"].dtype, kept["fold"].dtype) == (np.int64, np.int64)
    rows = kept.assign(patient_id=[f"synthetic-{uid}" for uid in kept.index], split="train", view="PA", synthetic=True)
    real = pd.DataFrame(
        {"path": "r.png", "patient_id": "p", "split": "train", "view": "PA", "Mass": 1.0, "content": "0"},
        index=pd.Index(["real"], name="uid"),
    )
    both = Manifest(real, ("Mass",), tmp_path).join(Manifest(rows, ("Mass",), tmp_path))
    both.write(tmp_path / "manifest.parquet")
    for table in (
        both.rows,
        Manifest.read(tmp_path / "manifest.parquet").rows,
        pd.read_parquet(tmp_path / "manifest.parquet"),
    ):
        assert [table.loc[uid, "seed"] for uid in ("u0", "u2")] == [2**63 - 1, 2**53 + 1]
        assert table["seed"].dtype == table["fold"].dtype == "Int64"


def test_rows_have_one_name_in_memory_and_from_disk(tmp_path: Path) -> None:
    rows = batch().rows.assign(view=["PA", None, np.nan], q=[0.1, np.nan, 1.0], age=pd.array([1, None, 3], "Int64"))
    rows.to_parquet(tmp_path / "plan.parquet")
    assert digest_rows(pd.read_parquet(tmp_path / "plan.parquet")) == digest_rows(rows)
    assert digest_rows(rows.assign(q=[0.1 + 2**-53, np.nan, 1.0])) != digest_rows(rows)
    assert digest_rows(rows.assign(seed=rows["seed"].astype("Int64"))) == digest_rows(rows)


def test_published_images_are_those_of_the_plan_whatever_lay_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, one = batch(), writer(tmp_path)
    one.write(made.rows, made, [], ["u0", "u1"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "u0.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    (tmp_path / "images" / "old.png").write_bytes(b"another run's")
    one.publish(["u0", "u1"])
    published = torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / "images" / f"u{i}.png"))) for i in (0, 1)])
    assert torch.equal(published[:, None], one.read(["u0", "u1"]))
    assert (tmp_path / "superseded" / "images" / "old.png").read_bytes() == b"another run's"
    assert "1 images are not in this run's plan, such as old.png" in caplog.text


def test_an_image_folder_of_hugging_face_can_be_made_of_it(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(batch().rows, batch(), [], ["u0", "u1"])
    one.publish(["u0", "u1"])
    write_metadata(tmp_path, one.kept(), ["Mass"], parents=True)
    table = pd.read_csv(tmp_path / "images" / "metadata.csv")
    assert table["file_name"].tolist() == ["u0.png", "u1.png"]
    assert all((tmp_path / "images" / name).exists() for name in table["file_name"])
    assert np.isnan(table["Mass"][1])


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of every chunk of a PNG, checksums verified: a reader of its own."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        parts.append((kind, body))
        at += 12 + length
    return parts


@pytest.mark.parametrize("uid", ["fusion_Hernia_00001_0_abc123", "Größe 1", "例_00001"])
def test_a_synthetic_png_states_what_it_is(uid: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    data = synthetic_png(pixels, uid, RUN)
    image = Image.open(io.BytesIO(data))
    assert image.text == {
        "Software": f"medlt {__version__}",
        "Description": "Synthetic image",
        "Synthetic": "true",
        "Run": RUN,
        "UID": uid,
    }
    assert (np.asarray(image) == pixels).all()
    assert data == synthetic_png(pixels, uid, RUN)
    kinds = [kind for kind, _ in chunks(data)]
    assert kinds == [b"IHDR", *[b"tEXt"] * 4, b"iTXt" if "例" in uid else b"tEXt", b"IDAT", b"IEND"]
    bare = [part for part in chunks(data) if part[0] not in (b"tEXt", b"iTXt")]
    assert bare == chunks(png(pixels))
    assert {"Run", "UID"} & set(Image.open(io.BytesIO(synthetic_png(pixels))).text) == set()


def test_published_images_state_run_and_uid_and_a_real_one_nothing(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(batch().rows, batch(), [], ["u0", "u2"])
    one.publish(["u0", "u2"])
    for uid in ("u0", "u2"):
        text = Image.open(tmp_path / "images" / f"{uid}.png").text
        assert (text["Run"], text["UID"], text["Synthetic"]) == (RUN, uid, "true")
        assert read_image(tmp_path / "images" / f"{uid}.png").shape == (4, 4)
    assert Image.open(io.BytesIO(png(np.zeros((4, 4), np.uint8)))).text == {}


def provenance(uids: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Mass": [1.0, np.nan, 0.25], "synthetic": True, "run": RUN, "method": "fusion", "finding": "Mass",
            "seed": [2**63 - 1, 2**53 + 1, 0], "weight": 0.3, "split": "train", "fold": 1, "tail_parent": "a, b",
            "parents": [["Viral Pneumonia-1", 'a, "b"'], [], ["é"]], "label_source": None,
            "path": [f"images/{uid}.png" for uid in uids],
        },
        index=uids,
    )  # fmt: skip


def test_metadata_says_what_made_each_image(tmp_path: Path) -> None:
    rows = provenance(batch().rows.index)
    write_metadata(tmp_path, rows, ["Mass"], parents=True)
    table = pd.read_csv(tmp_path / "images" / "metadata.csv")
    assert list(table) == [
        "file_name", "uid", "Mass", "synthetic", "run", "method", "finding", "seed", "weight", "split", "tail_parent",
        "parents",
    ]  # fmt: skip
    assert table["seed"].tolist() == rows["seed"].tolist()
    assert table["seed"].dtype == np.int64
    assert [json.loads(value) for value in table["parents"]] == rows["parents"].tolist()
    assert table["tail_parent"].tolist() == ["a, b"] * 3


def test_metadata_of_a_private_run_names_no_parent(tmp_path: Path) -> None:
    rows = provenance(batch().rows.index).assign(label_source="real-7", head_parent="real-8")
    write_metadata(tmp_path, rows, ["Mass"], parents=False)
    text = (tmp_path / "images" / "metadata.csv").read_text()
    assert "parent" not in text
    assert not [uid for uid in ("real-7", "real-8", "Viral", "a, b") if uid in text]
    assert list(metadata(rows, ["Mass"], {uid: f"{uid}.png" for uid in rows.index}, parents=False)) == [
        "file_name", "uid", "Mass", "synthetic", "run", "method", "finding", "seed", "weight", "split",
    ]  # fmt: skip


def test_dicom_files_hold_the_published_pixels_and_what_made_them(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(batch().rows, batch(), [], ["u0", "u1"])
    one.publish(["u0", "u1"])
    rows = one.kept().assign(
        method="fusion", models="0123456789abcdef", parents=[["ward-7"], ["ward-8"]], patient_id="ward"
    )
    write_dicom(tmp_path, rows, ["Mass"])
    assert sorted(p.name for p in (tmp_path / "dicom").iterdir()) == ["u0.dcm", "u1.dcm"]
    for uid in rows.index:
        file = tmp_path / "dicom" / f"{uid}.dcm"
        assert (read_image(file) == read_image(tmp_path / rows.loc[uid, "path"])).all()
        data = pydicom.dcmread(file)
        assert uid in data.DerivationDescription
        assert "0123456789abcdef" in data.DerivationDescription
        assert ("Mass 1" in data.ImageComments) == (uid == "u0")
        assert b"ward" not in file.read_bytes()


def test_dicom_files_lost_in_a_kill_come_back_and_the_others_stay(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(batch().rows, batch(), [], ["u0", "u1"])
    one.publish(["u0", "u1"])
    rows = one.kept().assign(method="fusion", models="")
    write_dicom(tmp_path, rows, ["Mass"])
    lost, stays = tmp_path / "dicom" / "u0.dcm", tmp_path / "dicom" / "u1.dcm"
    whole, written = lost.read_bytes(), stays.stat().st_mtime_ns
    lost.unlink()
    write_dicom(tmp_path, rows, ["Mass"])
    assert lost.read_bytes() == whole
    assert stays.stat().st_mtime_ns == written


def test_dicom_files_of_other_pixels_are_written_anew(tmp_path: Path) -> None:
    one = writer(tmp_path)
    one.write(batch().rows, batch(), [], ["u0"])
    one.publish(["u0"])
    rows = one.kept().assign(method="fusion", models="")
    write_dicom(tmp_path, rows, ["Mass"])
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "images" / "u0.png")
    write_dicom(tmp_path, rows, ["Mass"])
    assert (read_image(tmp_path / "dicom" / "u0.dcm") == read_image(tmp_path / "images" / "u0.png")).all()


def test_an_image_that_cannot_be_written_surfaces_and_leaves_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medlt import writer as module

    whole = module.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "u7.png":
            raise OSError("no space left on device")
        whole(path, data)

    monkeypatch.setattr(module, "write_bytes", full)
    uids = pd.Index([f"u{i}" for i in range(12)], name="uid")
    made = Batch(pd.DataFrame({"seed": range(12)}, uids), torch.rand(12, 1, 4, 4), pd.DataFrame({"Mass": 1.0}, uids))
    with pytest.raises(OSError, match="no space left"):
        writer(tmp_path).write(made.rows, made, [], list(uids))
    assert not writer(tmp_path).has(made.rows)
    monkeypatch.undo()
    writer(tmp_path).write(made.rows, made, [], list(uids)[:3])
    assert len(list((tmp_path / "stages").rglob("*.png"))) == 3
