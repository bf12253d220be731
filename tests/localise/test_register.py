"""Registration finds a known shift and scale, leaves alone what it cannot fit, and carries maps there and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from medlt.data.regions import Regions
from medlt.localise import register
from medlt.localise.prior import PositionPrior
from medlt.localise.register import LIMITS, MeanRadiograph, collection_poses, to_images, to_mean
from medlt.store import Store


def chest(pose: Sequence[float], size: int = 64) -> Tensor:
    """Two dark lungs of unlike width and a heart on the left, in an image of this pose, uint8 [1,size,size]."""
    a, b, c, d = pose
    line = torch.linspace(-1, 1, size)
    x, y = (line[None] - c) / np.exp(a), (line[:, None] - d) / np.exp(b)
    bright = (
        0.9
        - 0.6 * (((x + 0.42) / 0.3) ** 2 + (y / 0.6) ** 2 < 1)
        - 0.6 * (((x - 0.4) / 0.26) ** 2 + (y / 0.55) ** 2 < 1)
    )
    bright = bright + 0.3 * (((x - 0.18) / 0.25) ** 2 + ((y - 0.3) / 0.25) ** 2 < 1)
    soft = gaussian_filter(bright.numpy(), size / 48, mode="nearest")
    return torch.from_numpy(soft * 200).clamp(0, 255).to(torch.uint8)[None]


@pytest.fixture(scope="module")
def mean() -> MeanRadiograph:
    return MeanRadiograph.of(chest((0, 0, 0, 0))[None].repeat(3, 1, 1, 1))


MOVED = [(0.0, 0.0, 0.2, 0.0), (0.0, 0.0, 0.0, -0.25), (0.15, 0.15, 0.0, 0.0), (-0.2, 0.1, 0.1, 0.2)]


def test_an_image_equal_to_the_mean_stays(mean: MeanRadiograph) -> None:
    assert mean.poses(chest((0, 0, 0, 0))[None]).abs().max() < 0.01


@pytest.mark.parametrize("pose", MOVED)
@pytest.mark.parametrize(("ridge", "within"), [(0.0, 0.015), (register.RIDGE, 0.05)])
def test_a_known_shift_and_scale_are_found(
    mean: MeanRadiograph, pose: tuple[float, ...], ridge: float, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the side is 1, and a pixel of the features 0.06; the ridge draws large poses to zero."""
    monkeypatch.setattr(register, "RIDGE", ridge)
    torch.testing.assert_close(mean.poses(chest(pose)[None])[0], torch.tensor(pose), atol=within, rtol=0)


def test_exposure_does_not_change_a_pose(mean: MeanRadiograph) -> None:
    image = chest(MOVED[3])[None].float() / 255
    dark, bright = mean.poses(image**1.3 * 0.6), mean.poses(image**0.8)
    torch.testing.assert_close(dark, bright, atol=0.03, rtol=0)


def test_the_pose_of_an_image_does_not_depend_on_its_batch(mean: MeanRadiograph) -> None:
    batch = torch.stack([chest(pose) for pose in MOVED])
    alone = torch.cat([mean.poses(one[None]) for one in batch])
    torch.testing.assert_close(mean.poses(batch), alone, atol=1e-4, rtol=0)


def test_a_failed_fit_leaves_the_image_where_it_is(mean: MeanRadiograph, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.full((1, 1, 64, 64), 90, dtype=torch.uint8)
    assert mean.poses(flat).tolist() == [[0.0] * 4]
    far = LIMITS[2] + 0.1
    for image, pose in ((0.2, -0.5), (far, far), (0.2, float("nan"))):
        monkeypatch.setattr(register, "fit_poses", lambda *_, pose=pose: torch.tensor([[0.0, 0.0, pose, 0.0]]))
        found = mean.poses(chest((0.0, 0.0, image, 0.0))[None])
        assert found.tolist() == [[0.0] * 4], "worse than the identity, beyond the limits, not a number"


def test_the_mean_of_moved_images_is_as_sharp_as_one_and_in_their_middle() -> None:
    rng = np.random.default_rng(0)
    poses = rng.uniform(-1, 1, (24, 4)) * [0.1, 0.1, 0.15, 0.15]
    images = torch.stack([chest(pose) for pose in poses])
    found = MeanRadiograph.of(images).poses(images)
    spread = (found - torch.from_numpy(poses).float()).std(0)
    assert (spread < 0.03).all(), "the same frame for all, wherever it is"
    assert found.mean(0).abs().max() < 0.03


def test_maps_go_to_the_mean_and_back() -> None:
    """A smooth blob in the middle of the mean lies at (c, d) of the image, and comes back."""
    pose = torch.tensor([[0.2, -0.1, 0.25, -0.125]])
    line = torch.linspace(-1, 1, 65)[:-1] + 1 / 64
    blob = torch.exp(-(line[None] ** 2 + line[:, None] ** 2) / 0.08)[None]
    there = to_images(blob, pose, (64, 64))
    weight = there / there.sum()
    centre = (weight * line[None]).sum(), (weight * line[:, None]).sum()
    assert torch.stack(centre).tolist() == pytest.approx([0.25, -0.125], abs=0.01)
    ratio = there.sum() / blob.sum()
    assert float(ratio) == pytest.approx(np.exp(0.1), abs=0.02), "area grows by exp(a + b)"
    torch.testing.assert_close(to_mean(there, pose), blob, atol=0.02, rtol=0)
    torch.testing.assert_close(to_images(blob, torch.zeros(1, 4), (64, 64)), blob, atol=1e-5, rtol=0)


def test_a_mean_radiograph_and_poses_are_kept_and_depend_on_the_train_images_alone(tmp_path: Path) -> None:
    pixels = {name: chest(pose) for name, pose in zip("abcd", MOVED, strict=True)}
    calls: list[int] = []

    def images(uids: Sequence[str]) -> Tensor:
        calls.append(len(uids))
        return torch.stack([pixels[uid] for uid in uids])

    store = Store(tmp_path)
    poses = collection_poses(images, ["a", "b", "c"], ["d"], contents="one", store=store)
    assert list(poses) == ["a", "b", "c", "d"]
    made = len(calls)
    again = collection_poses(images, ["a", "b", "c"], ["d"], contents="one", store=store)
    assert len(calls) == made, "the store has them"
    assert all(torch.equal(again[uid], poses[uid]) for uid in poses)
    fewer = collection_poses(images, ["a", "b", "c"], [], contents="two", store=store)
    assert all(torch.equal(fewer[uid], poses[uid]) for uid in "abc")


def test_with_poses_the_usual_place_moves_with_the_image() -> None:
    """Lesions at one place of the chest, images shifted each in its way: the place is found in each of them."""
    shifts = {f"u{i}": 0.08 * (i - 3) for i in range(7)}
    boxes = {uid: np.array([[0.4 + s / 2, 0.4, 0.6 + s / 2, 0.6]]) for uid, s in shifts.items()}
    poses = {uid: torch.tensor([0.0, 0.0, s, 0.0]) for uid, s in shifts.items()}
    regions, uids = Regions(boxes={"Mass": boxes}), frozenset(boxes)
    placed = PositionPrior(regions, uids, {}, (16, 16), poses)
    maps, covered = placed(list(boxes), "Mass"), regions.masks(list(boxes), "Mass", 16)
    assert maps.amax((1, 2)).tolist() == pytest.approx([1.0] * 7)
    columns = torch.linspace(-1, 1, 33)[1::2]
    centre = (maps.sum(1) * columns).sum(1) / maps.sum((1, 2))
    torch.testing.assert_close(centre, (covered.sum(1) * columns).sum(1) / covered.sum((1, 2)), atol=0.02, rtol=0)
    still = {uid: np.array([[0.4, 0.4, 0.6, 0.6]]) for uid in boxes}
    sharp = PositionPrior(Regions(boxes={"Mass": still}), uids, {}, (16, 16), {})
    torch.testing.assert_close(placed(["x"], "Mass"), sharp(["x"], "Mass"), atol=0.03, rtol=0)


def test_without_movement_the_poses_change_next_to_nothing() -> None:
    corner = np.array([[0.25, 0.5, 0.5, 0.75]])
    regions = Regions(boxes={"Mass": {f"u{i}": corner for i in range(7)}})
    names = list(regions.boxes["Mass"])
    plain = PositionPrior(regions, frozenset(names), {}, (16, 16))(names, "Mass")
    placed = PositionPrior(regions, frozenset(names), {}, (16, 16), {})(names, "Mass")
    assert F.l1_loss(placed, plain) < 0.02
