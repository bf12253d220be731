"""Alignment recovers known maps, the sign and the mirror image do not matter, and a blend is a linear regression."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medlt.privacy.audit.alignment import Alignment, Candidates, Window, unit
from medlt.privacy.audit.matching import AXES, FAMILIES, Compressed, Fields, Matcher, Matches
from medlt.privacy.audit.plants import COMMON
from medlt.rng import torch_generator


def matcher(images: Tensor) -> Matcher:
    return Matcher.of(images, torch.arange(len(images)))


@pytest.fixture(scope="module")
def real(images: Callable[..., Tensor]) -> Tensor:
    return images(60, 5, size=64, sigma=2.5)


def test_alignment_recovers_shift_scale_and_rotation(real: Tensor) -> None:
    """The image is the reference under a known similarity map; its inverse is what the window needs."""
    scale, turn = 1.06, 0.09
    grid = torch.tensor([[scale, -turn, 2 * 3 / 64], [turn, scale, -2 * 2 / 64]]).expand(60, 2, 3)
    moved = functional.grid_sample(
        real, functional.affine_grid(grid, list(real.shape), align_corners=False), align_corners=False,
        padding_mode="border",
    )  # fmt: skip
    window = Window(16, 8, 8, "patch")
    near = Candidates(
        torch.arange(60)[:, None], torch.tensor([0, 8, 8]).expand(60, 1, 3), torch.ones(60, 1)
    )  # fmt: skip
    start = Alignment.start(Fields.of(moved).half[:, None], Fields.of(real).half, window, near)
    end = start.best(12)
    inverse = np.linalg.inv(np.array([[scale, -turn], [turn, scale]]))
    centre = 15.5 + inverse @ [-1.5, 1.0]  # x, y in pixels of the half size
    expected = [centre[1], centre[0], inverse[0, 0], inverse[1, 0]]
    middle = end.map.median(0).values.numpy()
    assert np.abs(middle - expected).max() < 0.05
    assert end.correlation().median() > 0.97 > start.correlation().median() + 0.2


@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: x.flip(-1), lambda x: 0.5 * x + 0.2])
def test_the_sign_the_mirror_image_and_the_light_do_not_matter(
    real: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    result = matcher(real).match(change(real[:9]))
    assert (result.row == torch.arange(9)[:, None]).all()
    assert result.distance.max() < 0.02


def test_another_patient_is_far_and_the_own_images_are_not_compared(real: Tensor) -> None:
    among = matcher(real)
    own = among.match(real[:20], torch.arange(20))
    assert (own.row != torch.arange(20)[:, None]).all()
    assert own.distance.min() > 0.1
    one = Matcher.of(real[:5], torch.zeros(5, dtype=torch.int64))
    assert (one.match(real[:2], torch.zeros(2, dtype=torch.int64)).distance == 2).all()
    assert len(among.match(real[:0]).row) == 0


def test_blocks_do_not_matter(real: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = matcher(real).match(real[:10] * 0.8)
    monkeypatch.setattr("medlt.privacy.audit.matching.BLOCK", 3)
    assert all(map(torch.allclose, matcher(real).match(real[:10] * 0.8), whole))


@pytest.mark.parametrize("kind", ["shift up to 15 %", "rotation up to 10 degrees", "halves of two", "blend of two"])
def test_each_family_detects_its_kind(real: Tensor, kind: str) -> None:
    among, other = matcher(real[:40]), real[40:]
    null: Matches = among.match(other)
    made = among.match(COMMON[kind](real[:20], torch_generator(3)))
    family = {"halves of two": "patch", "blend of two": "blend"}.get(kind, "whole")
    at = FAMILIES.index(family)
    assert (made.distance[:, at] < null.distance[:, at].min()).float().mean() >= 0.9


def test_a_blend_is_the_multiple_correlation_with_the_best_pair(real: Tensor) -> None:
    """Against least squares on each pair."""
    among = matcher(real[:6])
    image = unit(
        torch.randn(2, 1600, generator=torch_generator(8)) + 20 * among._whole[[0, 3]] + 9 * among._whole[[4, 1]]
    )
    row, own = torch.tensor([[0], [3]]), torch.zeros(2, 6, dtype=torch.bool)
    expected = []
    for u, a in zip(image.numpy(), (0, 3), strict=True):
        fits = []
        for b in set(range(6)) - {a}:
            basis = among._whole[[a, b]].numpy().T
            fits.append(np.linalg.norm(basis @ np.linalg.lstsq(basis, u, rcond=None)[0]))
        expected.append(1 - max(fits))
    assert np.allclose(among._blended(image, row, own)[:, 0], expected, atol=1e-5)


def test_compressed_vectors_have_the_same_products_with_any_image_if_they_lie_on_so_many_axes() -> None:
    rng = torch_generator(0, "compressed")
    vectors = unit(torch.randn(300, AXES - 4, generator=rng) @ torch.randn(AXES - 4, 400, generator=rng))
    others = unit(torch.randn(20, 400, generator=rng))
    small = Compressed.of(vectors)
    assert small.axes.shape == (400, AXES)
    torch.testing.assert_close(others @ small.axes @ small.coordinates, others @ vectors.T, rtol=0, atol=1e-5)
