"""S3 as moto serves it on this machine: input, output and a killed upload. Needs s3fs and moto: `make remote`."""

import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medlt
from medlt.data.convert import ConversionSettings, convert
from medlt.data.layouts import read_layout
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.data.validate import validate
from medlt.export.upload import BEGUN, RECORD, read_upload, upload
from medlt.remote import RemoteFile, listed
from medlt.store import Store
from medlt.types import InputError

pytest.importorskip("s3fs", reason="needs s3fs; run `make remote`")
pytest.importorskip("moto.server", reason="needs moto; run `make remote`")
pytestmark = pytest.mark.filterwarnings("ignore")  # of botocore and aiohttp

SECRET = "AKIASECRETSECRET", "secret+of/the+test"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a local object server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = ThreadedMotoServer(port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """An empty bucket named medlt, with credentials as a user gives them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    fsspec.config.conf.clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("medlt")
    yield system
    system.rm("medlt", recursive=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def collection(folder: Path, system: fsspec.AbstractFileSystem) -> tuple[Manifest, Manifest]:
    """The same images on the disk and in the bucket."""
    rng, rows = np.random.default_rng(3), []
    for number in range(9):
        file = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (20, 16), np.uint8)).save(file)
        system.pipe_file(f"medlt/images/{number}.png", file.read_bytes())
        split, present = ("train", "val", "test")[number % 3], float(number % 2)
        rows.append({"uid": f"u{number}", "path": file.name, "patient_id": f"p{number}", "split": split, "view": "PA",
                     "A": present, "B": 1 - present})  # fmt: skip
    table = pd.DataFrame(rows).set_index("uid")
    there = table.assign(path="s3://medlt/images/" + table["path"])
    return Manifest(table, ("A", "B"), folder), Manifest(there, ("A", "B"), folder)


def test_input(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    here, there = collection(tmp_path, bucket)
    assert there.digest() == here.digest()
    there.check_files()
    own, _ = PixelCache(Store(tmp_path / "a"), 2).prepare(here, (16,))
    ready, failures = PixelCache(Store(tmp_path / "b"), 2).prepare(there, (16,))
    assert failures.empty
    assert list(ready.rows["content"]) == list(own.rows["content"])
    before = listed("s3://medlt/images")
    bucket.pipe_file("medlt/images/0.png", bucket.cat_file("medlt/images/1.png"))
    assert {name for name, state in listed("s3://medlt/images").items() if before[name] != state} == {"0.png"}
    again, _ = PixelCache(Store(tmp_path / "b"), 2).prepare(there, (16,))
    assert again.rows.at["u0", "content"] == own.rows.at["u1", "content"]
    bucket.rm_file("medlt/images/2.png")
    with pytest.raises(InputError, match=r"s3://medlt/images/2.png: no such file \(uid u2\)"):
        there.check_files()
    assert validate(there).unreadable["uid"].tolist() == ["u2"]


def test_convert_in_worker_processes(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    collection(tmp_path / "in", bucket)
    here = convert(tmp_path / "in", tmp_path / "here", ConversionSettings(size=8), workers=1)
    there = convert("s3://medlt/images", tmp_path / "there", ConversionSettings(size=8), workers=2)
    assert there == here
    assert (tmp_path / "here/manifest.parquet").read_bytes() == (tmp_path / "there/manifest.parquet").read_bytes()


def test_zips_and_a_folder_of_images(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    here, there = collection(tmp_path / "in", bucket)
    with zipfile.ZipFile(tmp_path / "exam.zip", "w") as archive:
        for file in (tmp_path / "in").glob("*.png"):
            archive.write(file, file.name)
    bucket.put_file(str(tmp_path / "exam.zip"), "medlt/zipped/exam.zip")
    bucket.pipe_file("medlt/zipped/cut.zip", (tmp_path / "exam.zip").read_bytes()[:-40])
    settings = ConversionSettings(size=8)
    plain = convert(tmp_path / "in", tmp_path / "plain", settings, workers=1)
    unzipped = convert("s3://medlt/zipped", tmp_path / "there", settings, workers=2)
    assert (unzipped["converted"], unzipped["reasons"]) == (plain["converted"], {"corrupt": 1, "unzipped": 1})
    images = [{path.name for path in (tmp_path / out / "images").iterdir()} for out in ("plain", "there")]
    assert images[0] == images[1]
    here.rows.to_csv(tmp_path / "labels.csv")
    options = {"images": "s3://medlt/images", "findings": "A,B"}
    read = read_layout("csv", tmp_path / "labels.csv", options)
    assert read.manifest.rows["path"].to_dict() == there.rows["path"].to_dict()
    assert read.manifest.digest() == here.digest()


def test_output(tiny_run: medlt.Run, bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    out = tiny_run.export("parquet", tmp_path / "out", shard_size=2)
    record = tiny_run.upload("parquet", "s3://medlt/run", shard_size=2)
    assert read_upload("s3://medlt/run") == record
    bucket.get("medlt/run", str(tmp_path / "back"), recursive=True)
    back = {path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
            for path in (tmp_path / "back").rglob("*") if path.is_file()}  # fmt: skip
    assert back.pop(RECORD)
    assert back == {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds another export"):
        tiny_run.upload("webdataset", "s3://medlt/run")
    with pytest.raises(InputError, match="no such bucket"):
        tiny_run.upload("webdataset", "s3://not-there/run")


PROGRAM = """
import os, signal, sys
import s3fs
from pathlib import Path
from medlt.export.upload import upload

put, sent = s3fs.S3FileSystem._put_file, []

async def killed(self, source, target, **rest):
    if len(sent) >= 40:
        os.kill(os.getpid(), signal.SIGKILL)
    sent.append(target)
    await put(self, source, target, **rest)

s3fs.S3FileSystem._put_file = killed
upload(Path(sys.argv[1]), "s3://medlt/killed")
"""


def test_a_killed_process_leaves_an_upload_that_is_resumed(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number}.bin").write_bytes(os.urandom(100))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, check=False, timeout=120)
    assert done.returncode == -9, done.stderr[-2000:]
    with pytest.raises(InputError, match="it is incomplete"):
        read_upload("s3://medlt/killed")
    before = {name: info["LastModified"] for name, info in bucket.find("medlt/killed", detail=True).items()}
    assert 1 < len(before) < 121
    record = upload(folder, "s3://medlt/killed")
    after = {name: info["LastModified"] for name, info in bucket.find("medlt/killed", detail=True).items()}
    assert {name: time for name, time in before.items() if not name.endswith(BEGUN)}.items() <= after.items()
    assert read_upload("s3://medlt/killed") == record
    for number in range(120):
        assert bucket.cat_file(f"medlt/killed/{number}.bin") == (folder / f"{number}.bin").read_bytes()
    bucket.pipe_file("medlt/killed/7.bin", bytes(100))  # the same size, other bytes
    bucket.mv(f"medlt/killed/{RECORD}", f"medlt/killed/{BEGUN}")
    upload(folder, "s3://medlt/killed")
    assert bucket.cat_file("medlt/killed/7.bin") == (folder / "7.bin").read_bytes()


def test_no_credentials_and_no_metadata_service(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.pipe_file("medlt/a.png", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    program = (
        "import socket, sys\n"
        "def watch(event, args):\n"
        "    if event == 'socket.connect' and args[1][0] not in ('127.0.0.1', '::1', '0.0.0.0'):\n"
        "        print('connected', args[1][0])\n"
        "sys.addaudithook(watch)\n"
        "from medlt.remote import RemoteFile\n"
        "from medlt.types import InputError\n"
        "try:\n    print(RemoteFile('s3://medlt/a.png').read_bytes())\n"
        "except (InputError, FileNotFoundError) as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert "connected" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Error" in done.stdout or "b'x'" in done.stdout  # refused, or a bucket that is open to all


def test_no_secret_leaves(bucket: fsspec.AbstractFileSystem, tiny_run: medlt.Run, server: str) -> None:
    tiny_run.upload("imagefolder", "s3://medlt/run")
    for name in bucket.find("medlt/run"):
        data = bucket.cat_file(name)
        assert not any(one.encode() in data for one in (*SECRET, server))
    with pytest.raises(InputError) as caught:
        tiny_run.upload("webdataset", "s3://medlt/run")
    assert not any(one in str(caught.value) for one in (*SECRET, server))


def test_a_server_that_is_away_is_one_line(bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://medlt/a.png: the server cannot be used") as caught:
        RemoteFile("s3://medlt/a.png").read_bytes()
    assert "\n" not in str(caught.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.undo()
