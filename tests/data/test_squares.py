"""Squares of 8-bit pixels are those of the same pixels as floats; shards are read by number, one at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.data import squares
from medlt.data.squares import eight_bit, square, stored_rows

SIDES = st.integers(1, 70)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 60), st.integers(0, 99))
def test_8_bit_pixels_and_floats_give_the_same_square(high: int, wide: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (high, wide), np.uint8)
    as_floats = eight_bit(pixels.astype(np.float32) / 255, size)
    assert eight_bit(pixels, size).dtype == as_floats.dtype == np.uint8
    np.testing.assert_allclose(eight_bit(pixels, size), as_floats.astype(int), atol=1, rtol=0)


def test_areas_are_means_and_the_padding_is_the_minimum() -> None:
    pixels = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)
    want = np.array([[10 + 10 + 10 + 20, 10 + 10 + 30 + 40], [50 + 60 + 10 + 10, 70 + 80 + 10 + 10]]) / 4
    np.testing.assert_allclose(eight_bit(pixels, 2), want, atol=0.5)
    np.testing.assert_allclose(square(pixels / np.float32(255), 2) * 255, want, rtol=1e-5)


def three_shards(place: Path) -> list[Path]:
    """Three shards of 5, 1 and 4 images of 3 px; every pixel of an image is 10 x shard + row."""
    folders = []
    for shard, count in enumerate((5, 1, 4)):
        folders.append(place / str(shard))
        folders[-1].mkdir()
        level = np.arange(count, dtype=np.uint8) + 10 * shard
        np.save(folders[-1] / "images.npy", np.broadcast_to(level[:, None, None], (count, 3, 3)))
    return folders


@settings(deadline=None)
@given(st.data())
def test_rows_of_any_shards_come_in_the_order_of_their_numbers(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folders = three_shards(tmp_path_factory.mktemp("shards"))
    every = [(folder, row) for folder, count in zip(folders, (5, 1, 4), strict=True) for row in range(count)]
    places = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=12))
    rows = stored_rows(places, [f"{folder.name}.{row}" for folder, row in places], 3)
    at = np.array(data.draw(st.lists(st.integers(0, len(places) - 1), max_size=12)), np.int64)
    read = rows[at]
    assert (read.dtype, tuple(read.shape)) == (torch.uint8, (len(at), 1, 3, 3))
    assert read[:, 0, 1, 1].tolist() == [10 * int(places[i][0].name) + places[i][1] for i in at]
    assert rows.subset(at).digest_names() == [f"{places[i][0].name}.{places[i][1]}" for i in at]


def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    places = []
    for i in range(80):
        (folder := tmp_path / str(i)).mkdir()
        np.save(folder / "images.npy", np.full((1, 2, 2), i, np.uint8))
        places.append((folder, 0))
    rows = stored_rows(places, [str(i) for i in range(80)], 2)
    parts = [rows[np.array([i])] for i in range(80)]  # nothing of these stays open
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        assert torch.cat(parts)[:, 0, 0, 0].tolist() == rows[:][:, 0, 0, 0].tolist() == list(range(80))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_rows_are_read_when_they_are_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = np.load

    def load(file: Path, **more: Any) -> Any:
        opened.append(file.parent.name)
        return real(file, **more)

    monkeypatch.setattr(squares.np, "load", load)
    rows = stored_rows([(folder, 0) for folder in three_shards(tmp_path)], ["a", "b", "c"], 3)
    assert not opened
    assert rows[np.array([2, 0, 2])].tolist() == [[[[v] * 3] * 3] for v in (20, 0, 20)]
    assert sorted(opened) == ["0", "2"], "one opening a shard"
