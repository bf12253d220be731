"""Files at URLs: read, identified and described as files of a disk are, without a network (memory://, file://)."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFile
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.convert import ConversionSettings, archives, convert
from medlt.data.convert.archives import Member, with_members
from medlt.data.convert.scan import scan
from medlt.data.images import image_shape, read_image, read_levels
from medlt.data.layouts import tree
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.data.validate import validate
from medlt.files import digest_bytes, digest_file
from medlt.remote import RemoteFile, are_files, as_file, digest_of, is_url, listed, public
from medlt.store import Store
from medlt.types import InputError


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system of memory://, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def pair(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> tuple[Manifest, Manifest]:
    """The same collection twice: its images on the disk, and at URLs."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(6):
        file = tmp_path / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 12 + number), np.uint8)).save(file)
        memory.pipe_file(f"/bucket/images/{number}.png", file.read_bytes())
        split = ("train", "val", "test")[number % 3]
        rows.append({"uid": f"u{number}", "path": f"images/{number}.png", "patient_id": f"p{number}", "split": split,
                     "view": "PA", "Nodule": float(number < 3), "No_Finding": float(number >= 3)})  # fmt: skip
    table = pd.DataFrame(rows).set_index("uid")
    at_urls = table.assign(path="memory://bucket/" + table["path"])
    findings = ("Nodule", "No_Finding")
    return Manifest(table, findings, tmp_path), Manifest(at_urls, findings, tmp_path)


def test_a_url_is_read_as_the_file_is(pair: tuple[Manifest, Manifest]) -> None:
    here, there = pair
    for uid in here.rows.index:
        np.testing.assert_array_equal(read_image(there.file(uid)), read_image(here.file(uid)))
        np.testing.assert_array_equal(read_levels(there.rows.at[uid, "path"]), read_levels(here.file(uid)))
        assert image_shape(there.file(uid)) == image_shape(here.file(uid))
        assert digest_of(there.file(uid)) == digest_file(here.local_file(uid))
    assert there.digest() == here.digest()
    assert bool((images(there, 16) == images(here, 16)).all())
    there.check_files()


def test_urls_survive_writing_and_joining(pair: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    here, there = pair
    there.write(tmp_path / "there.parquet")
    read = Manifest.read(tmp_path / "there.parquet")
    assert list(read.rows["path"]) == list(there.rows["path"])
    others = there.rows.assign(patient_id="q" + there.rows["patient_id"]).rename(lambda uid: f"other-{uid}")
    other = Manifest(others, there.findings, tmp_path / "elsewhere")
    assert set(there.rows["path"]) <= set(here.join(other).rows["path"])


def test_the_cache_of_urls_is_that_of_the_files(
    pair: tuple[Manifest, Manifest], tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    here, there = pair
    ready, failures = PixelCache(Store(tmp_path / "a"), 2).prepare(there, (16,))
    own, _ = PixelCache(Store(tmp_path / "b"), 2).prepare(here, (16,))
    assert failures.empty
    assert list(ready.rows["content"]) == list(own.rows["content"])
    cache = PixelCache(Store(tmp_path / "a"), 2)
    same = PixelCache(Store(tmp_path / "b"), 2).images(own, 16)
    assert bool((cache.images(ready, 16) == same).all())
    memory.pipe_file("/bucket/images/0.png", memory.cat_file("/bucket/images/1.png"))
    again, _ = cache.prepare(there, (16,))
    assert again.rows.at["u0", "content"] == own.rows.at["u1", "content"]  # replaced under its name
    memory.pipe_file("/bucket/images/2.png", b"")
    memory.rm_file("/bucket/images/3.png")
    _, failures = cache.prepare(there, (16,))
    assert set(failures["uid"]) == {"u2", "u3"}
    assert not failures["reason"].str.contains("://").any()


def test_an_unchanged_url_is_read_once(
    pair: tuple[Manifest, Manifest], tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    _, there = pair
    data = memory.cat_file("/bucket/images/0.png")
    memory.pipe_file("/bucket/images/0.png", data + b"a")
    read: list[str] = []
    whole = RemoteFile.read_bytes
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RemoteFile, "read_bytes", lambda file: (read.append(file.url), whole(file))[1])
        PixelCache(Store(tmp_path / "a"), 2).prepare(there, (16,))
        assert sorted(read) == sorted(there.rows["path"])
        PixelCache(Store(tmp_path / "a"), 2).prepare(there, (16,))
        assert len(read) == len(there.rows)
        memory.pipe_file("/bucket/images/0.png", data + b"b")  # of the same size
        again, _ = PixelCache(Store(tmp_path / "a"), 2).prepare(there, (16,))
        assert len(read) == len(there.rows) + 1
    assert again.rows.at["u0", "content"] == digest_bytes(data + b"b")


def test_missing_urls_are_counted_and_named(pair: tuple[Manifest, Manifest], memory: fsspec.AbstractFileSystem) -> None:
    _, there = pair
    memory.rm_file("/bucket/images/3.png")
    memory.rm_file("/bucket/images/4.png")
    with pytest.raises(InputError, match=r"memory://bucket/images/3.png: no such file \(uid u3\) \(and 1 more\)"):
        there.check_files()
    report = validate(there)
    assert report.unreadable["uid"].tolist() == ["u3", "u4"]
    assert report.unreadable["code"].tolist() == ["missing", "missing"]
    assert are_files(["memory://bucket/images/1.png", "memory://bucket/images/3.png", "memory://bucket/images"]) == [
        True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("https://me:secret@host/a.png?X-Amz-Signature=secret#secret", "https://host/a.png"),
        ("s3://KEY:sec/ret@bucket/a.png", "s3://bucket/a.png"),
        ("https://host/a.png?user=secret@host", "https://host/a.png"),
        ("memory://me@bucket/a.png", "memory://bucket/a.png"),
    ],
)
def test_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    assert public(url) == shown
    for text in (str(RemoteFile(url)), repr(RemoteFile(url)), str(RemoteFile(url).absolute())):
        assert "secret" not in text
        assert "KEY" not in text
    with pytest.raises(InputError) as caught:
        as_file(url).read_bytes() if "@" in url.partition("?")[0] else read_levels(f"no-such-{url}")
    assert "secret" not in str(caught.value)
    assert "sec/ret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no-such-protocol://bucket/a.png", "no protocol 'no-such-protocol'"),
        ("memory://bucket/zip::memory://a.zip", "chained protocols are not read"),
        ("zip://a.png::memory://a.zip", "chained protocols are not read"),
        ("memory://me@bucket/a.png", "holds a user or password"),
        ("memory://bucket/missing.png", "no such object"),
    ],
)
def test_a_bad_url_is_one_line(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_levels(url)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_server_does_not_repeat_its_text(memory: fsspec.AbstractFileSystem) -> None:
    def broken(self: object, path: str, **_: object) -> dict[str, object]:
        raise RuntimeError("https://host/a.png?X-Amz-Signature=secret")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(memory), "info", broken)
        with pytest.raises(InputError, match=r"memory://bucket/a.png: the server cannot be used \(RuntimeError\)"):
            read_levels("memory://bucket/a.png?token=secret")


@pytest.mark.parametrize(
    ("url", "name", "suffix"),
    [
        ("s3://bucket/ward@2/a@b.png", "a@b.png", ".png"),
        ("s3://bucket/a#1?.dcm", "a#1?.dcm", ".dcm"),
        ("https://host/a.png?X-Amz-Signature=secret.x", "a.png", ".png"),
        ("s3://bucket/I000001", "I000001", ""),
    ],
)
def test_the_name_of_an_object(url: str, name: str, suffix: str) -> None:
    assert (RemoteFile(url).name, RemoteFile(url).suffix) == (name, suffix)
    assert public(url) == re.split(r"[?#]", url)[0]


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/key")
    assert not is_url("images/a.png")
    assert not is_url("/data/a://b.png")
    assert not is_url("C:\\images\\a.png")
    assert isinstance(as_file("images/a.png"), Path)
    assert pickle.loads(pickle.dumps(RemoteFile("s3://bucket/key"))) == RemoteFile("s3://bucket/key")


def test_listed_names_all_objects_and_changes_with_them(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("b/2.dcm", "b/1.dcm", "a.dcm"):
        memory.pipe_file(f"/in/{name}", name.encode())
    before = listed("memory://in")
    assert [*before] == ["a.dcm", "b/1.dcm", "b/2.dcm"]
    assert [size for size, _ in before.values()] == [5, 7, 7]
    memory.pipe_file("/in/a.dcm", b"other")
    after = listed("memory://in/")
    assert {name for name in after if after[name] != before[name]} == {"a.dcm"}
    assert [*listed("memory://in/b/1.dcm")] == ["1.dcm"]
    with pytest.raises(InputError, match="no such object"):
        listed("memory://nothing")


def test_convert_reads_urls_and_gives_the_bytes_of_the_folder(write_dicom: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "b").mkdir(parents=True)
    for number in range(4):
        made = write_dicom(np.arange(240, dtype=np.uint16).reshape(12, 20) + number, name=f"{number}.dcm")
        made.rename(source / ("b" if number % 2 else ".") / f"{number}.dcm")
    (source / "bad.dcm").write_bytes(b"no image" * 100)
    settings = ConversionSettings(size=8)
    here = convert(source, tmp_path / "here", settings, workers=1)
    there = convert(f"file://{source}", tmp_path / "there", settings, workers=2)
    assert there == here
    assert here["converted"] == 4
    for name in ("manifest.parquet", "failures.csv", "sources.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    before = (tmp_path / "there" / "manifest.parquet").read_bytes()
    assert convert(f"file://{source}", tmp_path / "there", settings, workers=1) == here
    assert (tmp_path / "there" / "manifest.parquet").read_bytes() == before
    lone = convert(f"file://{source}/0.dcm", tmp_path / "lone", settings, workers=1)
    assert lone["converted"] == 1


def test_zips_at_a_url_are_read_as_those_of_a_folder(write_dicom: Callable[..., Path], tmp_path: Path) -> None:
    (source := tmp_path / "in").mkdir()
    with zipfile.ZipFile(source / "exam.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            made = write_dicom(np.arange(240, dtype=np.uint16).reshape(12, 20) + number, name=f"{number}.dcm")
            archive.write(made, f"disc/{number}.dcm")
            made.unlink()
    whole = (source / "exam.zip").read_bytes()
    (source / "cut.zip").write_bytes(whole[:-40])
    (source / "bad.zip").write_bytes(whole.replace(b"\0", b"\1", 40))
    here = convert(source, tmp_path / "here", ConversionSettings(size=8), workers=1)
    there = convert(f"file://{source}", tmp_path / "there", ConversionSettings(size=8), workers=2)
    assert there == here
    assert here["converted"] == 4
    assert here["reasons"]["corrupt"] > 1  # the zip that is cut, and members of the bad one
    for name in ("manifest.parquet", "failures.csv", "sources.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    assert convert(f"file://{source}/exam.zip", tmp_path / "alone", ConversionSettings(size=8))["converted"] == 4


def test_only_what_is_read_of_a_zip_is_sent(memory: fsspec.AbstractFileSystem) -> None:
    rng, raw = np.random.default_rng(1), io.BytesIO()
    files = {f"{number}": rng.bytes(10_000) for number in range(20)}
    with zipfile.ZipFile(raw, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    memory.pipe_file("/in/exam.zip", raw.getvalue())
    read: list[int] = []
    whole = MemoryFile.read

    def counted(file: MemoryFile, size: int = -1) -> bytes:
        data = bytes(whole(file, size))
        read.append(len(data))
        return data

    root = RemoteFile("memory://in")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryFile, "read", counted)
        members = [one for entry in scan(root) for one in with_members(root, entry)]
        assert [one.relative for one in members] == ["exam.zip", *(f"exam.zip!/{name}" for name in files)]
        assert Member(root / "exam.zip", members[8].member).read() == files["7"]
        assert sum(read) < 40_000
        patched.setattr(MemoryFile, "read", lambda *_: (_ for _ in ()).throw(RuntimeError("secret")))
        with pytest.raises(InputError, match=r"memory://in/exam.zip: the server cannot be used \(RuntimeError\)"):
            Member(root / "exam.zip", 8).read()


def test_a_table_of_urls_becomes_a_manifest(pair: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    _, there = pair
    (tmp_path / "table").mkdir()
    table = tmp_path / "table" / "labels.csv"
    lost = there.rows.iloc[[0]].rename({"u0": "lost"}).assign(path="memory://bucket/lost.png", patient_id="lost")
    pd.concat([there.rows, lost]).to_csv(table)
    out = tmp_path / "made.parquet"
    done = CliRunner().invoke(
        app, ["manifest", "csv", str(table), str(out), "--findings", "Nodule,No_Finding", "--json"]
    )
    assert done.exit_code == 1, done.output  # one image is missing
    assert json.loads(done.stdout)["orphans"]["label_without_image"]["count"] == 1
    made = Manifest.read(out)
    assert made.rows["path"].to_dict() == there.rows["path"].to_dict()


def manifest_of(layout: str, src: Path, out: Path, *options: str) -> Manifest:
    """What `medlt manifest` writes with the images of the bucket."""
    given = ["manifest", layout, str(src), str(out), "--images", "memory://bucket/images", *options, "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    return Manifest.read(out)


@pytest.mark.parametrize("names", ["uid", "path", "url"])
def test_the_folder_of_the_images_may_be_a_url(pair: tuple[Manifest, Manifest], tmp_path: Path, names: str) -> None:
    """A table names its images by uid, by the path below the URL, or by the whole URL."""
    here, there = pair
    rows = here.rows.rename({f"u{number}": f"{number}" for number in range(6)})
    rows["path"] = rows["path"].str.removeprefix("images/") if names == "path" else list(there.rows["path"])
    (tmp_path / "t").mkdir()
    (rows.drop(columns="path") if names == "uid" else rows).to_csv(tmp_path / "t" / "labels.csv")
    out = tmp_path / "out.parquet"
    made = manifest_of("csv", tmp_path / "t" / "labels.csv", out, "--findings", "Nodule,No_Finding")
    assert not out.with_suffix(".orphans.csv").exists()
    assert list(made.rows["path"]) == list(there.rows["path"])
    assert made.contents() == {uid[1:]: content for uid, content in here.contents().items()}
    made.check_files()


def test_classes_and_published_lists_at_a_url(
    pair: tuple[Manifest, Manifest], tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    here, _ = pair
    for number in range(6):
        name = f"/bucket/images/{'AB'[number % 2]}/{number}.png"
        memory.mv(f"/bucket/images/{number}.png", name)
    memory.pipe_file("/bucket/images/.hidden/A/7.png", b"x")
    (tmp_path / "src").mkdir()
    made = manifest_of("folder", tmp_path / "src", tmp_path / "classes.parquet", "--patient", "(.+)")
    names = ("A/0.png", "A/2.png", "A/4.png", "B/1.png", "B/3.png", "B/5.png")
    assert sorted(made.rows["path"]) == [f"memory://bucket/images/{name}" for name in names]
    assert (made.rows["A"] == made.rows["path"].str.contains("/A/")).all()
    entry = {"Image Index": [f"{n}.png" for n in range(6)], "Finding Labels": ["Mass", "No Finding"] * 3,
             "Patient ID": range(6), "View Position": "PA",
             "Patient Age": 50, "Patient Gender": "F"}  # fmt: skip
    pd.DataFrame(entry).to_csv(tmp_path / "src" / "Data_Entry_2017.csv", index=False)
    listed_rows = manifest_of("nih-cxr-lt", tmp_path / "src", tmp_path / "nih.parquet", "--release", "nih14")
    assert sorted(listed_rows.rows["path"]) == sorted(made.rows["path"])
    assert sorted(listed_rows.contents().values()) == sorted(here.contents().values())


def test_masks_of_a_table_are_below_the_url_too(
    pair: tuple[Manifest, Manifest], tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    here, _ = pair
    memory.pipe_file("/bucket/images/masks/0.png", memory.cat_file("/bucket/images/0.png"))
    rows = here.rows.assign(path=here.rows["path"].str.removeprefix("images/"))
    rows["mask_Nodule"] = ["masks/0.png", *[None] * 5]
    (tmp_path / "t").mkdir()
    rows.to_csv(tmp_path / "t" / "labels.csv")
    made = manifest_of("csv", tmp_path / "t" / "labels.csv", tmp_path / "m.parquet", "--findings", "Nodule,No_Finding")
    assert made.rows.at["u0", "mask_Nodule"] == "memory://bucket/images/masks/0.png"
    made.check_files()
    assert set(made.mask_contents()) == {"u0"}


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "s3://bucket/m.parquet"),
        ("join", "s3://bucket/m.parquet", "s3://bucket/n.parquet", "out.parquet"),
        ("manifest", "csv", "s3://bucket/labels.csv", "out.parquet"),
        ("init", "s3://bucket/labels.csv"),
    ],
)
def test_what_must_be_on_this_machine_is_one_line(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert re.search(r"s3://bucket/\S+: is a URL; copy it to this machine, and give its path", line)


def test_a_whole_url_is_matched_below_a_folder_of_any_name(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/bucket/ward #1/x.png", b"x")
    root = RemoteFile("memory://bucket/ward #1")
    rows = pd.DataFrame({"path": ["memory://bucket/ward #1/x.png"]}, pd.Index(["x"], name="uid"), dtype="str")
    matched = tree.by_path(rows, tree.images(tree.listing(root)), root)
    assert matched.rows[["path", "exists"]].values.tolist() == [["x.png", True]]
    assert matched.unmatched.empty


def test_a_zip_with_too_many_members_is_not_read_into_memory(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}", b"x")
    memory.pipe_file("/in/exam.zip", raw.getvalue())
    monkeypatch.setattr(archives, "LIMIT_INDEX_BYTES", 500)
    root = RemoteFile("memory://in")
    assert [one.reason for entry in scan(root) for one in with_members(root, entry)] == ["too_large"]
