"""Augmentation: drawn by its generator, identity at zero, never a mirror."""

import pytest
import torch

from medlt.classify.augment import AUGMENTS, augment, augmentation
from medlt.types import InputError

STILL = {"degrees": 0.0, "scale": 0.0, "shift": 0.0, "contrast": 0.0, "brightness": 0.0}


def seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_zero_amounts_return_the_image() -> None:
    images = torch.rand(3, 1, 16, 16, generator=seeded(0))
    torch.testing.assert_close(augment(images, seeded(1), **STILL), images, atol=1e-5, rtol=0)


def test_the_generator_decides_everything() -> None:
    images = torch.rand(3, 1, 16, 16, generator=seeded(0))
    assert torch.equal(augment(images, seeded(1)), augment(images, seeded(1)))
    assert not torch.equal(augment(images, seeded(1)), augment(images, seeded(2)))
    same = augment(images[:1].repeat(3, 1, 1, 1), seeded(1))
    assert not torch.equal(same[0], same[1])


def test_the_heart_stays_on_its_side_and_values_in_range() -> None:
    images = torch.zeros(200, 1, 32, 32)
    images[:, :, 12:20, 20:26] = 1
    moved = augment(images, seeded(3))
    assert moved.min() >= 0
    assert moved.max() <= 1
    columns = torch.arange(32.0)
    bright = (moved - moved.amin((2, 3), keepdim=True)).sum((1, 2))
    centre = (bright * columns).sum(1) / bright.sum(1)
    assert (centre > 16).all()


def test_each_amount_moves_what_it_names() -> None:
    images = torch.rand(4, 1, 16, 16, generator=seeded(0))
    for name in STILL:
        moved = augment(images, seeded(1), **(STILL | {name: 5.0 if name == "degrees" else 0.2}))
        assert not torch.allclose(moved, images, atol=1e-3), name
    brighter = augment(images * 0.5 + 0.25, seeded(1), **(STILL | {"brightness": 0.1}))
    shifts = brighter - (images * 0.5 + 0.25)
    torch.testing.assert_close(shifts.amax((1, 2, 3)), shifts.amin((1, 2, 3)), atol=1e-5, rtol=0)


def test_greys_change_by_no_more_than_the_amounts_allow() -> None:
    images = torch.rand(40, 1, 16, 16, generator=seeded(0))
    moved = augment(images, seeded(3), **(STILL | {"contrast": 0.2, "brightness": 0.1}))
    assert 0.1 < float((moved - images).abs().max()) <= 0.5 * 0.2 + 0.1 + 1e-5


def test_a_corner_stays_a_corner() -> None:
    images = torch.zeros(40, 1, 64, 64)
    images[:, :, 6:26, 6:26], images[:, :, 40:, 40:] = 0.9, 0.3
    brightest = augment(images, seeded(3)).flatten(1).argmax(1)
    assert (brightest // 64 < 32).all()
    assert (brightest % 64 < 32).all()
    assert len(set(brightest.tolist())) > 20


@pytest.mark.parametrize("name", list(AUGMENTS))
def test_every_augmentation_is_drawn_by_its_generator_and_keeps_shape_and_range(name: str) -> None:
    images = torch.rand(6, 1, 32, 32, generator=seeded(0))
    before, state = images.clone(), torch.get_rng_state()
    moved, again, other = (augmentation(name)(images, seeded(n)) for n in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(moved) is torch.Tensor
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert 0 <= moved.min() <= moved.max() <= 1
    assert torch.equal(moved, again)
    assert torch.equal(moved, other) == (name == "none")
    assert torch.equal(moved, images) == (name == "none")


@pytest.mark.parametrize("name", list(AUGMENTS))
def test_no_augmentation_mirrors_a_chest(name: str) -> None:
    """A heart right of the middle stays there: its weight, and never the mirrored picture."""
    images = torch.full((60, 1, 32, 32), 0.2)
    images[:, :, 12:20, 20:26] = 0.9
    moved = augmentation(name)(images, seeded(3))
    right, left = moved[..., 17:].flatten(1).amax(1), moved[..., :15].mean((1, 2, 3))
    assert (right > left + 0.2).all()
    centre = (moved.clamp(min=0.5) - 0.5).sum((1, 2)) @ torch.arange(32.0) / (moved.clamp(min=0.5) - 0.5).sum((1, 2, 3))
    assert (centre.nan_to_num(20) > 16).all()


def test_monai_moves_geometry_greys_and_holes() -> None:
    """Of images with a grey middle: a fifth has holes of 0, half another grey. Of a bright square: its place."""
    images = torch.full((200, 1, 32, 32), 0.5)
    images[:, :, :8], images[:, :, 24:] = 0.1, 0.9
    moved = augmentation("monai")(images, seeded(5)).flatten(1)
    holes = (moved == 0).float().mean(1)
    assert float((holes > 0).float().mean()) == pytest.approx(0.2, abs=0.08)
    assert float(holes.max()) < 0.1
    assert float((moved.median(1).values - 0.5).abs().gt(0.01).float().mean()) == pytest.approx(0.5, abs=0.1)
    bright = torch.zeros(100, 1, 32, 32)
    bright[:, :, 10:14, 10:14] = 1
    places = augmentation("monai")(bright, seeded(6)).flatten(1).argmax(1)
    assert len(set(places.tolist())) > 10


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match="'flip'; choose one of light, none, monai"):
        augmentation("flip")
