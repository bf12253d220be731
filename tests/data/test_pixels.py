"""The pixel cache: every original decoded once for all sizes, stages and runs, keyed by the bytes of its file."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medlt.data import file_states, pixels
from medlt.data.duplicates import image_hash
from medlt.data.images import levels_in, read_image, read_levels
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache, read_into
from medlt.data.squares import square
from medlt.data.validate import read_all
from medlt.files import digest_file
from medlt.store import Store
from medlt.types import InputError

FINDINGS = ("A", "B", "No_Finding")


@pytest.fixture
def manifest(folder: Path, table: pd.DataFrame) -> Manifest:
    return Manifest(table.assign(weight=[1, 1, 0.3, 1, 1, None]).set_index("uid"), FINDINGS, folder)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []

    def count(raw: bytes, path: Path) -> np.ndarray:
        names.append(Path(path).name)
        return levels_in(raw, path)

    monkeypatch.setattr(pixels, "levels_in", count)
    return names


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, and files are taken as settled at once."""
    names: list[str] = []
    whole = pixels.read_bytes
    monkeypatch.setattr(file_states, "RACY_NS", 0)
    monkeypatch.setattr(pixels, "read_bytes", lambda path: (names.append(Path(path).name), whole(path))[1])
    return names


def cache(tmp_path: Path, workers: int = 3) -> PixelCache:
    return PixelCache(Store(tmp_path / "store"), workers)


def oracle(manifest: Manifest, size: int) -> np.ndarray:
    """Each original by itself."""
    return np.stack([np.rint(square(read_image(manifest.file(u)), size) * 255) for u in manifest.rows.index])


def fill(manifest: Manifest, uid: str, level: int) -> None:
    """Another image under the same name, with the same length and times."""
    state = manifest.file(uid).stat()
    Image.fromarray(np.full((12, 20), level, np.uint8)).save(manifest.file(uid))
    os.utime(manifest.file(uid), ns=(state.st_atime_ns, state.st_mtime_ns))


def test_squares_are_those_of_each_original_rounded_to_8_bit(manifest: Manifest, tmp_path: Path) -> None:
    ready, failures = cache(tmp_path).prepare(manifest, (10, 7))
    assert len(failures) == 0
    assert ready.rows["content"].to_dict() == {uid: digest_file(manifest.file(uid)) for uid in manifest.rows.index}
    for size in (10, 7):
        held = cache(tmp_path).images(ready, size)
        assert (held.dtype, held.shape) == (torch.uint8, (6, 1, size, size))
        # areas of 8-bit pixels and of floats round halves apart
        np.testing.assert_allclose(held[:, 0].numpy(), oracle(manifest, size), rtol=0, atol=1)
        np.testing.assert_allclose(held.numpy(), images(manifest, size).numpy(), rtol=0, atol=1)


def test_a_data_set_gives_uid_image_label_and_weight(manifest: Manifest, tmp_path: Path) -> None:
    store = cache(tmp_path)
    source = store.dataset(store.prepare(manifest, (8,))[0], 8)
    assert source.uids == tuple(manifest.rows.index)
    held = store.images(manifest, 8)
    for i, row in enumerate(source[i] for i in range(len(source))):
        assert row["uid"] == f"u{i}"
        assert row["image"].dtype == torch.float32
        assert torch.equal(row["image"], held[i].float() / 255)
    assert source[2]["weight"] == torch.tensor(0.3)
    corrected = Manifest(manifest.rows.assign(A=[0, 1, 0, 1, 1, 0]), FINDINGS, manifest.root)
    assert (source[0]["label"][0], store.dataset(corrected, 8)[0]["label"][0]) == (1, 0)


def test_each_original_is_decoded_once_for_all_sizes_and_not_again(
    manifest: Manifest, tmp_path: Path, read: list[str]
) -> None:
    cache(tmp_path).prepare(manifest, (10, 7, 4))
    assert sorted(read) == [f"{i}.png" for i in range(6)]
    again, _ = cache(tmp_path).prepare(manifest, (7, 10))
    for size in (4, 7, 10):
        cache(tmp_path).images(again, size)
    assert len(read) == 6
    cache(tmp_path).prepare(manifest, (7, 5))
    assert len(read) == 12
    assert cache(tmp_path).images(manifest, 5).shape == (6, 1, 5, 5)
    assert len(read) == 12


def test_files_that_did_not_change_are_not_even_opened(
    manifest: Manifest, tmp_path: Path, read: list[str], opened: list[str]
) -> None:
    cache(tmp_path).prepare(manifest, (8,))
    opened.clear()
    cache(tmp_path).prepare(manifest, (8,))
    assert opened == []
    os.utime(manifest.file("u3"), ns=(5, 5))
    cache(tmp_path).prepare(manifest, (8,))
    assert opened == ["3.png"]
    assert len(read) == 6


def test_a_file_that_changed_just_now_is_read_again_but_not_decoded(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str], opened: list[str]
) -> None:
    monkeypatch.setattr(file_states, "RACY_NS", 3600 * 10**9)
    for _ in range(2):
        cache(tmp_path).prepare(manifest, (8,))
    assert (len(opened), len(read)) == (12, 6)


def test_other_pixels_under_the_same_names_are_other_images(
    manifest: Manifest, tmp_path: Path, opened: list[str]
) -> None:
    before, _ = cache(tmp_path).prepare(manifest, (8,))
    old = cache(tmp_path).images(before, 8)
    fill(manifest, "u0", 77)
    after, _ = cache(tmp_path).prepare(manifest, (8,))
    assert after.digest() != before.digest()
    new = cache(tmp_path).images(after, 8)
    assert (new[0] == 77).all()
    assert torch.equal(new[1:], old[1:])
    assert torch.equal(cache(tmp_path).images(before, 8), old)


def test_two_collections_with_equal_uids_and_names_do_not_mix(manifest: Manifest, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "images").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((9, 9), 40 * i, np.uint8)).save(there / f"images/{i}.png")
    other = Manifest(manifest.rows, FINDINGS, there)
    shared = cache(tmp_path)
    ready, strange = (shared.prepare(one, (8,))[0] for one in (manifest, other))
    np.testing.assert_array_equal(shared.images(ready, 8)[:, 0].numpy(), oracle(manifest, 8))
    assert shared.images(strange, 8)[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]


def test_a_file_replaced_during_a_run_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    ready, _ = cache(tmp_path).prepare(manifest, (8,))
    fill(manifest, "u2", 5)
    with pytest.raises(InputError, match=r"2\.png changed since this run began \(uid u2\); run again"):
        cache(tmp_path).images(ready, 6)


def test_equal_files_and_renamed_ones_are_decoded_once(manifest: Manifest, tmp_path: Path, read: list[str]) -> None:
    manifest.file("u1").write_bytes(manifest.file("u0").read_bytes())
    cache(tmp_path).prepare(manifest, (8,))
    assert len(read) == 5
    manifest.file("u4").rename(manifest.root / "moved.png")
    rows = manifest.rows.assign(path=[*manifest.rows["path"][:4], "moved.png", "images/5.png"])
    moved = cache(tmp_path).images(Manifest(rows, FINDINGS, manifest.root), 8)
    assert len(read) == 5
    np.testing.assert_array_equal(moved[:, 0].numpy(), oracle(Manifest(rows, FINDINGS, manifest.root), 8))


def test_images_come_in_the_order_of_the_uids(manifest: Manifest, tmp_path: Path) -> None:
    whole = cache(tmp_path).images(manifest, 8)
    assert torch.equal(cache(tmp_path).images(manifest, 8, ["u4", "u1", "u4"]), whole[[4, 1, 4]])
    assert cache(tmp_path).images(manifest, 8, []).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_files_are_listed_and_never_stop_the_pass(
    manifest: Manifest, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.file("u4").unlink()
    manifest.file("u1").write_bytes(manifest.file("u1").read_bytes()[:60])
    manifest.file("u2").write_text("not an image " * 30)

    def stumbling(raw: bytes, path: Path) -> np.ndarray:
        if Path(path).name == "3.png":
            raise MemoryError
        return levels_in(raw, path)

    monkeypatch.setattr(pixels, "levels_in", stumbling)
    with warnings.catch_warnings(record=True) as filters:
        kept, failures = cache(tmp_path, workers).prepare(manifest, (8,))
    assert list(failures.columns) == ["uid", "code", "reason"]
    assert failures["code"].tolist() == ["corrupt", "not_dicom", "corrupt", "missing"]
    assert failures["uid"].tolist() == ["u1", "u2", "u3", "u4"]
    for uid, reason in failures.set_index("uid")["reason"].items():
        assert reason.startswith(f"{uid}: ")
        assert "\n" not in reason
        assert str(tmp_path) not in reason
    assert list(kept.rows.index) == ["u0", "u5"]
    np.testing.assert_array_equal(cache(tmp_path).images(kept, 8)[:, 0].numpy(), oracle(kept, 8))
    assert not filters
    with pytest.raises(InputError, match="u1: damaged image"):
        cache(tmp_path).images(manifest, 8)


def test_a_mended_file_is_taken_the_next_time(manifest: Manifest, tmp_path: Path, opened: list[str]) -> None:
    whole = manifest.file("u1").read_bytes()
    for name in ("u1", "u3"):
        manifest.file(name).write_bytes(whole[:60])
    assert cache(tmp_path).prepare(manifest, (8,))[1]["uid"].tolist() == ["u1", "u3"]
    manifest.file("u1").write_bytes(whole)
    assert cache(tmp_path).prepare(manifest, (8,))[1]["uid"].tolist() == ["u3"]


@pytest.mark.parametrize("levels", [4096, 65536])
def test_16_bit_originals(tmp_path: Path, table: pd.DataFrame, levels: int) -> None:
    deep = np.linspace(0, levels - 1, 400).reshape(20, 20).astype(np.uint16)
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.roll(deep, i)).save(tmp_path / f"images/{i}.png")
    manifest = Manifest(table.set_index("uid"), FINDINGS, tmp_path)
    held = cache(tmp_path).images(manifest, 10)
    np.testing.assert_array_equal(held[:, 0].numpy(), oracle(manifest, 10))
    assert held.max() > 240 * levels // 65536


def test_a_dicom_goes_the_same_way(write_dicom: Callable[..., Path], table: pd.DataFrame, tmp_path: Path) -> None:
    path = write_dicom(np.arange(200, dtype=np.uint16).reshape(10, 20) * 20)
    manifest = Manifest(table[:1].assign(path=path.name).set_index("uid"), FINDINGS, tmp_path)
    np.testing.assert_array_equal(cache(tmp_path).images(manifest, 8)[:, 0].numpy(), oracle(manifest, 8))


def shards(tmp_path: Path, size: int) -> list[Path]:
    return Store(tmp_path / "store").folders(f"images-{size}")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 7),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", ["images.npy", "contents.json", "artifact.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_set_aside_and_its_images_decoded_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    read: list[str], opened: list[str], damage: str, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(pixels, "SHARD", 4)
    ready, _ = cache(tmp_path).prepare(manifest, (8,))
    whole = cache(tmp_path).images(ready, 8)
    four = next(folder for folder in shards(tmp_path, 8) if len(np.load(folder / "images.npy")) == 4)
    DAMAGES[damage](four / name)
    read.clear()
    assert torch.equal(cache(tmp_path).images(ready, 8), whole)
    assert sorted(read) == [f"{i}.png" for i in range(4)]
    if damage != "missing" or name != "artifact.json":  # a folder without that file is no artifact
        assert any(f"{four.name}/{name} is damaged" in text for text in caplog.messages)
    read.clear()
    cache(tmp_path).prepare(manifest, (8,))
    assert read == []


def test_damage_under_the_hands_of_a_run_is_seen(manifest: Manifest, tmp_path: Path, read: list[str]) -> None:
    one = cache(tmp_path)
    ready, _ = one.prepare(manifest, (8,))
    whole = one.images(ready, 8)
    DAMAGES["flipped"](shards(tmp_path, 8)[0] / "images.npy")
    assert torch.equal(one.images(ready, 8), whole)
    assert len(read) == 12


def test_shards_of_another_format_are_left_alone(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    cache(tmp_path).prepare(manifest, (8,))
    monkeypatch.setattr(pixels, "FORMAT", pixels.FORMAT + 1)
    cache(tmp_path).prepare(manifest, (8,))
    assert len(read) == 12
    assert len(shards(tmp_path, 8)) == 2


def test_a_lost_or_damaged_memory_of_files_costs_a_reading_only(
    manifest: Manifest, tmp_path: Path, read: list[str], opened: list[str]
) -> None:
    cache(tmp_path).prepare(manifest, (8,))
    for damage in ("truncated", "emptied", "missing"):
        (table,) = (tmp_path / "store" / "pixels").glob("*.parquet")
        DAMAGES[damage](table)
        opened.clear()
        cache(tmp_path).prepare(manifest, (8,))
        assert len(opened) == 6
    assert len(read) == 6


def many(tmp_path: Path, count: int) -> Manifest:
    (tmp_path / "many").mkdir(exist_ok=True)
    for i in range(count):
        level = np.full((64, 64), i % 251, np.uint8)
        level[0, :8] = list(np.frombuffer(np.int64(i).tobytes(), np.uint8))
        Image.fromarray(level).save(tmp_path / "many" / f"{i}.png", compress_level=1)
    uids = [f"u{i}" for i in range(count)]
    rows = {"path": [f"many/{i}.png" for i in range(count)], "patient_id": uids, "split": "train", "view": "PA"}
    return Manifest(pd.DataFrame(rows | {"A": 1.0}, index=pd.Index(uids, name="uid")), ("A",), tmp_path)


def peak(store: Path, manifest: Manifest) -> int:
    tracemalloc.start()
    PixelCache(Store(store), 1).prepare(manifest, (64, 48))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard's worth of squares is held, whatever the number of images: 7.5 times the squares in the same memory."""
    monkeypatch.setattr(pixels, "SHARD", 32)
    peak(tmp_path / "warm", many(tmp_path, 4))
    few, lots = (peak(tmp_path / str(count), many(tmp_path, count)) for count in (40, 300))
    assert lots < few + 300 * 2000  # some hundred bytes of text an image, where its squares are 6,400
    assert max(len(np.load(folder / "images.npy")) for folder in Store(tmp_path / "300").folders("images-64")) == 32


def test_large_squares_make_small_shards(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "SHARD_BYTES", 8 * 8 * 2)
    cache(tmp_path).prepare(manifest, (8,))
    assert [len(np.load(folder / "images.npy")) for folder in shards(tmp_path, 8)] == [2, 2, 2]


def test_an_interrupted_pass_goes_on_with_what_it_has(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    done: list[str] = []

    def killed(raw: bytes, path: Path) -> np.ndarray:
        done.append(Path(path).name)
        if len(done) == 5:
            raise KeyboardInterrupt
        return levels_in(raw, path)

    monkeypatch.setattr(pixels, "SHARD", 2)
    monkeypatch.setattr(pixels, "levels_in", killed)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, 1).prepare(manifest, (8,))
    assert len(shards(tmp_path, 8)) == 2
    held = cache(tmp_path, 1).images(manifest, 8)
    np.testing.assert_array_equal(held[:, 0].numpy(), oracle(manifest, 8))
    assert set(done[5:]) == {"4.png", "5.png"}


def test_progress_reaches_the_total(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "SHARD", 4)
    steps: list[tuple[str, int, int]] = []
    cache(tmp_path).prepare(manifest, (8,), lambda *step: steps.append(step))
    assert steps == [("images", 4, 6), ("images", 6, 6)]


def test_threads_decode_at_the_same_time(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)

    def wait(raw: bytes, path: Path) -> np.ndarray:
        together.wait()
        return levels_in(raw, path)

    monkeypatch.setattr(pixels, "levels_in", wait)
    _, failures = cache(tmp_path, 3).prepare(manifest, (8,))
    assert len(failures) == 0


PROGRAM = """
import sys, time
from pathlib import Path
from medlt.data import file_states, pixels
from medlt.data.manifest import Manifest
from medlt.store import Store

place, read = Path(sys.argv[1]), pixels.levels_in

def slow(raw, path):
    with (place / "decoded").open("a") as handle:
        handle.write(Path(path).name + "\\n")
    time.sleep(0.05)
    return read(raw, path)

pixels.levels_in = slow
manifest = Manifest.read(place / "manifest.parquet")
ready, failures = pixels.PixelCache(Store(place / "store"), 1).prepare(manifest, (8, 6))
print(ready.digest(), len(failures))
"""


def test_processes_that_prepare_the_same_files_decode_each_once(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "manifest.parquet")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = {process.communicate(timeout=240)[0] for process in racing}
    assert len(results) == 1
    assert sorted((tmp_path / "decoded").read_text().split()) == [f"{i}.png" for i in range(6)]


def test_what_the_store_holds_is_small_and_plain(manifest: Manifest, tmp_path: Path) -> None:
    cache(tmp_path).prepare(manifest, (8,))
    (shard,) = shards(tmp_path, 8)
    held = np.load(shard / "images.npy", allow_pickle=False)
    assert (held.dtype, held.shape) == (np.uint8, (6, 8, 8))
    assert len(json.loads((shard / "contents.json").read_text())["contents"]) == 6
    assert time.time() - shard.stat().st_mtime < 600


def test_the_pass_keeps_the_hash_of_each_original(manifest: Manifest, tmp_path: Path, read: list[str]) -> None:
    want = {uid: image_hash(read_levels(manifest.file(uid))) for uid in manifest.rows.index}
    ready, _ = cache(tmp_path).prepare(manifest, (8, 6))
    for size in (8, 6):
        assert cache(tmp_path).hashes(ready, size) == want
    one = Manifest(ready.rows.iloc[[4]], FINDINGS, ready.root)
    assert cache(tmp_path).hashes(one, 6) == {"u4": want["u4"]}
    assert len(read) == 6


def test_validation_into_the_cache_finds_what_validation_alone_finds(manifest: Manifest, tmp_path: Path) -> None:
    manifest.file("u1").write_bytes(manifest.file("u1").read_bytes()[:60])
    shutil.copy(manifest.file("u0"), manifest.file("u5"))
    alone, together = read_all(manifest, 2), read_into(cache(tmp_path), manifest, (8,))
    assert dict(alone.hashes) == dict(together.hashes)
    assert len(alone.hashes) == 5
    assert together.hashes["u0"] == together.hashes["u5"] != together.hashes["u2"]
    assert alone.unreadable[["uid", "code"]].equals(together.unreadable[["uid", "code"]])
    assert alone.unreadable["uid"].tolist() == ["u1"]
    everything = read_into(cache(tmp_path), Manifest(manifest.rows.loc[["u1"]], FINDINGS, manifest.root), (8,))
    assert (len(everything.unreadable), everything.hashes) == (1, {})


def test_a_disk_that_is_full_gives_one_line_and_the_next_call_goes_on(manifest: Manifest, tmp_path: Path) -> None:
    """The system refuses longer files, as a full disk does in the middle of one."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        with pytest.raises(InputError, match="File too large; free space") as error:
            cache(tmp_path).images(manifest, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(error.value)
    held = cache(tmp_path).images(manifest, 64)[:, 0].numpy()
    np.testing.assert_allclose(held, oracle(manifest, 64), rtol=0, atol=1)
