from collections.abc import Callable
from pathlib import Path

import monai
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.classify.augment import augment
from medlt.data.images import read_image
from medlt.data.loaders import dataset, images, loader, transforms
from medlt.data.manifest import Manifest
from medlt.data.pixels import PixelCache
from medlt.data.squares import square
from medlt.store import Store
from medlt.types import InputError

FINDINGS = ("A", "B", "No_Finding")


@pytest.fixture
def manifest(folder: Path, table: pd.DataFrame) -> Manifest:
    return Manifest(table.assign(weight=[1, 1, 0.3, 1, 1, None]).set_index("uid"), FINDINGS, folder)


def area_oracle(pixels: np.ndarray, size: int) -> np.ndarray:
    """Exact area average: each output pixel is the integral over its (fractional) footprint."""
    side = len(pixels)
    edges = np.linspace(0, side, size + 1)
    cover = np.clip(
        np.minimum(edges[1:, None], np.arange(1, side + 1)) - np.maximum(edges[:-1, None], np.arange(side)), 0, 1
    )
    weights = cover / cover.sum(axis=1, keepdims=True)
    return weights @ pixels @ weights.T


@given(high=st.integers(8, 40), wide=st.integers(8, 40), size=st.integers(3, 8), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_square_is_padding_then_exact_area_average(high: int, wide: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).uniform(0.2, 1, (high, wide)).astype(np.float32)
    side = max(high, wide)
    padded = np.full((side, side), pixels.min(), np.float32)
    top, left = (side - high) // 2, (side - wide) // 2
    padded[top : top + high, left : left + wide] = pixels
    np.testing.assert_allclose(square(pixels, size), area_oracle(padded, size), atol=1e-5)


def test_square_leaves_a_fitting_image_alone_and_enlarges_a_small_one() -> None:
    pixels = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    np.testing.assert_array_equal(square(pixels, 16), pixels)
    ramp = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (8, 1))
    grown = square(ramp, 32)
    assert (np.diff(grown, axis=1) >= 0).all()
    np.testing.assert_allclose(grown[0], grown[-1])


def corner(image: np.ndarray) -> tuple[bool, bool]:
    """Where the bright corner is: (in the upper half, in the left half)."""
    row, column = np.unravel_index(np.argmax(image), image.shape)
    return bool(row < image.shape[0] / 2), bool(column < image.shape[1] / 2)


@pytest.mark.parametrize("way", ["plain", "memory", "cached"])
def test_images_stay_upright_and_unmirrored_through_every_loader(manifest: Manifest, tmp_path: Path, way: str) -> None:
    cache = PixelCache(Store(tmp_path / "store"), 2)
    kept = {"plain": 0.0, "memory": 0.5}
    source = dataset(manifest, 10, kept[way]) if way in kept else cache.dataset(manifest, 10)
    for _ in range(2):
        batch = next(iter(loader(source, batch_size=6)))
        assert batch["image"].shape == (6, 1, 10, 10)
        assert batch["image"].dtype == torch.float32
        assert {corner(i[0].numpy()) for i in batch["image"]} == {(True, True)}
        direct = np.stack([square(read_image(manifest.file(u)), 10) for u in batch["uid"]])
        shown = direct if way in kept else np.rint(direct * 255).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(batch["image"][:, 0].numpy(), shown)


def test_a_dicom_stays_upright_too(write_dicom: Callable[..., Path]) -> None:
    pixels = np.zeros((40, 20), np.uint16)
    pixels[:10, :5] = 4095
    path = write_dicom(pixels)
    shown = transforms(20)({"uid": "a", "image": str(path)})["image"][0].numpy()
    assert corner(shown) == (True, True)
    assert shown[:5, 5:7].min() == 1
    assert shown[6:].max() == 0


def test_batches_carry_uid_label_and_weight_by_uid(manifest: Manifest) -> None:
    batch = next(iter(loader(dataset(manifest, 8), batch_size=6, shuffle=True, seed=5)))
    np.testing.assert_array_equal(batch["label"].numpy(), manifest.labels(batch["uid"]))
    assert batch["label"].dtype == batch["weight"].dtype == torch.float32
    weights = dict(zip(batch["uid"], batch["weight"].tolist(), strict=True))
    assert weights == pytest.approx({"u0": 1, "u1": 1, "u2": 0.3, "u3": 1, "u4": 1, "u5": 1})


def test_the_order_depends_on_the_seed_only(manifest: Manifest) -> None:
    source = dataset(manifest, 8)
    orders = [[u for b in loader(source, batch_size=2, shuffle=True, seed=s) for u in b["uid"]] for s in (1, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len({tuple(o) for o in orders}) > 1
    assert [u for b in loader(source, batch_size=4) for u in b["uid"]] == list(manifest.rows.index)


def test_a_missing_or_damaged_file_is_one_line(manifest: Manifest) -> None:
    manifest.file("u3").write_bytes(manifest.file("u3").read_bytes()[:40])
    with pytest.raises(InputError, match=r"3\.png: damaged image"):
        dataset(manifest, 8)[3]
    with pytest.raises(InputError, match=r"3\.png: damaged image"):
        images(manifest, 8)
    with pytest.raises(InputError, match=r"3\.png: damaged image"):
        dataset(manifest, 8, cache_rate=1.0)
    with pytest.raises(InputError, match=r"3\.png: damaged image"):  # in the loader's thread, at the second batch
        list(loader(dataset(manifest, 8), batch_size=2))
    manifest.file("u1").unlink()
    with pytest.raises(InputError, match=r"1\.png: No such file.*\(uid u1\)"):
        dataset(manifest, 8)


def test_images_come_in_the_order_of_the_uids(manifest: Manifest) -> None:
    whole = images(manifest, 10)
    assert (whole.shape, whole.dtype) == ((6, 1, 10, 10), torch.uint8)
    assert torch.equal(images(manifest, 10, uids=["u4", "u1"]), whole[[4, 1]])
    exact = images(manifest, 10, dtype=torch.float32)
    assert (exact - whole.float() / 255).abs().max() <= 0.5 / 255 + 1e-6
    assert images(manifest, 10, uids=[]).shape == (0, 1, 10, 10)


def test_a_written_manifest_with_synthetic_rows_loads_in_monai(manifest: Manifest, tmp_path: Path) -> None:
    made = manifest.rows.loc[["u0", "u1"]].assign(
        patient_id=["s0", "s1"], split="train", synthetic=True, weight=0.5, A=[0.8, np.nan]
    )
    made.index = pd.Index(["s0", "s1"], name="uid")
    manifest.join(Manifest(made, FINDINGS, manifest.root)).write(tmp_path / "manifest.parquet")
    read = dataset(Manifest.read(tmp_path / "manifest.parquet"), 8)
    batches = list(monai.data.DataLoader(read, batch_size=4, num_workers=0))
    assert [uid for batch in batches for uid in batch["uid"]] == [*manifest.rows.index, "s0", "s1"]
    assert torch.equal(batches[1]["image"][2:], batches[0]["image"][:2])
    np.testing.assert_array_equal(batches[1]["label"][2:, 0].numpy(), np.float32([0.8, np.nan]))
    assert batches[1]["weight"][2:].tolist() == [0.5, 0.5]


def test_batches_of_a_loader_can_be_augmented_as_the_classifier_does(manifest: Manifest) -> None:
    batch = next(iter(loader(dataset(manifest, 10), batch_size=6)))
    moved = augment(batch["image"], torch.Generator().manual_seed(1))
    assert {corner(image[0].numpy()) for image in moved} == {(True, True)}
    assert not torch.equal(moved, batch["image"])
