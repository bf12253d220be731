"""An upload is whole or seen as incomplete, sends nothing twice, and overwrites nothing (memory://, file://)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

import medlt
from medlt.cli import app
from medlt.export.upload import BEGUN, RECORD, read_upload, upload
from medlt.files import digest_file
from medlt.types import InputError

URL = "memory://bucket/export"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system of memory://, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files, some below others."""
    made = tmp_path / "made"
    for number in range(150):
        file = made / f"part-{number % 3}" / f"{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * number)
    return made


def objects(system: fsspec.AbstractFileSystem) -> dict[str, bytes]:
    """Everything below the URL, by its name."""
    return {name.removeprefix("/bucket/export/"): system.cat_file(name) for name in system.find("/bucket/export")}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, memory: fsspec.AbstractFileSystem) -> list[str]:
    """Names of the files that were sent."""
    names: list[str] = []
    put = type(memory).put_file

    def counted(self: fsspec.AbstractFileSystem, source: str, target: str, **rest: object) -> None:
        names.append(target.removeprefix("/bucket/export/"))
        put(self, source, target, **rest)

    monkeypatch.setattr(type(memory), "put_file", counted)
    return names


def test_all_files_and_a_record_of_them(folder: Path, memory: fsspec.AbstractFileSystem) -> None:
    record = upload(folder, URL)
    there = objects(memory)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {*there} == {*files, RECORD}
    assert all(there[name] == file.read_bytes() for name, file in files.items())
    assert json.loads(there[RECORD]) == record == read_upload(URL)
    assert record["count"] == 150
    assert record["files"]["part-2/5.bin"] == {"bytes": 5, "digest": digest_file(files["part-2/5.bin"])}


@pytest.mark.parametrize("after", [0, 1, 70, 149])
def test_a_killed_upload_is_incomplete_and_resumes(
    folder: Path, memory: fsspec.AbstractFileSystem, sent: list[str], after: int
) -> None:
    put = type(memory).put_file

    def killed(self: fsspec.AbstractFileSystem, source: str, target: str, **rest: object) -> None:
        if len(sent) >= after:
            raise KeyboardInterrupt
        put(self, source, target, **rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(memory), "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            upload(folder, URL)
    assert RECORD not in objects(memory)
    with pytest.raises(InputError, match="it is incomplete"):
        read_upload(URL)
    before = len(objects(memory)) - 1  # but for the plan
    sent.clear()
    record = upload(folder, URL)
    assert len(sent) == 150 - before
    assert record == read_upload(URL)
    assert BEGUN not in objects(memory)
    sent.clear()
    assert upload(folder, URL) == record  # again: nothing to do
    assert sent == []


def test_a_kill_between_the_record_and_the_end(folder: Path, memory: fsspec.AbstractFileSystem) -> None:
    record = upload(folder, URL)
    memory.pipe_file(f"/bucket/export/{BEGUN}", json.dumps(record).encode())
    assert upload(folder, URL) == record == read_upload(URL)


def test_a_file_cut_short_is_sent_again(folder: Path, memory: fsspec.AbstractFileSystem, sent: list[str]) -> None:
    record = upload(folder, URL)
    memory.rm_file(f"/bucket/export/{RECORD}")
    memory.pipe_file(f"/bucket/export/{BEGUN}", json.dumps(record).encode())
    memory.pipe_file("/bucket/export/part-2/5.bin", b"12")
    sent.clear()
    upload(folder, URL)
    assert sent == ["part-2/5.bin"]
    memory.pipe_file("/bucket/export/part-2/5.bin", b"12")
    with pytest.raises(InputError, match=r"part-2/5.bin: missing or cut short"):
        read_upload(URL)
    with pytest.raises(InputError, match=r"part-2/5.bin: missing or cut short"):
        upload(folder, URL)


def test_nothing_is_overwritten(folder: Path, memory: fsspec.AbstractFileSystem) -> None:
    upload(folder, URL)
    before = objects(memory)
    (folder / "more.bin").write_bytes(b"more")
    with pytest.raises(InputError, match="holds another export"):
        upload(folder, URL)
    assert objects(memory) == before
    memory.pipe_file("/bucket/other/notes.txt", b"mine")
    with pytest.raises(InputError, match=r"is not empty, it holds notes.txt"):
        upload(folder, "memory://bucket/other/")
    memory.pipe_file(f"/bucket/third/{BEGUN}", json.dumps({"format": "medlt upload 1", "files": {}}).encode())
    with pytest.raises(InputError, match="another export was begun"):
        upload(folder, "memory://bucket/third")
    assert set(memory.find("/bucket/other")) == {"/bucket/other/notes.txt"}


def test_two_processes_that_begin_at_once(folder: Path, memory: fsspec.AbstractFileSystem) -> None:
    pipe = type(memory).pipe_file

    def beaten(
        self: fsspec.AbstractFileSystem, path: str, value: bytes, mode: str = "overwrite", **rest: object
    ) -> None:
        if mode == "create":
            pipe(self, path, b'{"format": "medlt upload 1", "files": {"other": 1}}')
        pipe(self, path, value, mode=mode, **rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(memory), "pipe_file", beaten)
        with pytest.raises(InputError, match="another export was begun"):
            upload(folder, URL)


def test_an_upload_to_a_folder_by_its_url(folder: Path, tmp_path: Path) -> None:
    upload(folder, f"file://{tmp_path}/there/deep")
    assert read_upload(f"file://{tmp_path}/there/deep")["count"] == 150
    assert (tmp_path / "there" / "deep" / "part-2" / "5.bin").read_bytes() == bytes([5]) * 5


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset"])
def test_a_run_is_exported_as_to_a_folder(
    tiny_run: medlt.Run, tmp_path: Path, memory: fsspec.AbstractFileSystem, kind: str
) -> None:
    out = tiny_run.export(kind, tmp_path / "out")
    done = CliRunner().invoke(app, ["export", str(tiny_run.folder), URL, "--format", kind, "--json"])
    assert done.exit_code == 0, done.output
    record = read_upload(URL)
    assert json.loads(done.stdout) == {
        "out": URL, "format": kind, "files": record["count"], "digest": record["digest"],
    }  # fmt: skip
    there = objects(memory)
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: data for name, data in there.items() if name != RECORD} == files
    assert tiny_run.upload(kind, URL) == record


FULL = """
import resource, sys
from typer.testing import CliRunner
from medlt.cli import app

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
done = CliRunner().invoke(app, ["export", *sys.argv[2:]])
print(done.exit_code, done.stderr, end="")
"""


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "webdataset", "diffusers"])
def test_a_full_temporary_folder_is_one_line(tiny_run: medlt.Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "there").mkdir()
    called = ["500", str(tiny_run.folder), f"file://{tmp_path}/there", "--format", kind]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *called], env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"2 medlt: {tmp_path}/tmp: File too large; set TMPDIR to a folder with room"), done
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [("nowhere-at-all://bucket", "no protocol"), ("memory://me:secret@bucket/a", "holds a user or password")],
)
def test_a_bad_url_is_refused_before_any_work(
    tiny_run: medlt.Run, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Callable[..., None]] = []
    monkeypatch.setattr("medlt.export.imagefolder.exported", lambda *_: made.append)
    done = CliRunner().invoke(app, ["export", str(tiny_run.folder), url, "--format", "imagefolder"])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "secret" not in done.output
    assert made == []
