"""Soft masks, seams and difference decoding: closed forms, and real pixels to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.data.regions import Regions
from medlt.diffusion.schedulers import factory
from medlt.localise.given import Given
from medlt.localise.measure import Localisation
from medlt.localise.trust import Trust
from medlt.synthesis.composite import (
    Difference,
    StartDecoder,
    composite,
    difference_decoded,
    poisson,
    soft_mask,
)
from medlt.testing import label_backbone
from medlt.types import InputError
from medlt.writer import to_uint8

Methods = dict[str, Callable[..., Any]]


def bytes_of(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def block(size: int = 32) -> Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, 10:15, 12:20] = True
    return mask


@given(st.integers(0, 2**20), st.floats(0, 9), st.sampled_from([4, 8, 16]))
def test_a_soft_mask_is_one_inside_and_zero_beyond_its_edge(seed: int, feather: float, cells: int) -> None:
    mask = torch.rand(1, cells, cells, generator=torch.Generator().manual_seed(seed)) < 0.1
    soft = soft_mask(mask, 16, feather)
    inside = mask[0].repeat_interleave(16 // cells, 0).repeat_interleave(16 // cells, 1)
    assert soft.shape == (1, 1, 16, 16)
    at = inside.nonzero().float()
    every = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0))
    distance = torch.cdist(every, at).min(1).values.view(16, 16) if len(at) else torch.full((16, 16), 99.0)
    assert bool((soft[0, 0][inside] == 1).all())
    assert bool((soft[0, 0][distance >= max(feather, 1)] == 0).all())
    between = (distance > 0) & (distance < feather - 1e-3)
    assert bool(((soft[0, 0][between] > 0) & (soft[0, 0][between] < 1)).all())


def test_a_soft_edge_is_a_raised_cosine_of_the_distance() -> None:
    soft = soft_mask(block(), 32, 4.0)[0, 0]
    expected = 0.5 + 0.5 * np.cos(np.pi * np.arange(5) / 4)
    np.testing.assert_allclose(soft[12, 19:24].numpy(), expected, atol=1e-6)
    corner = 0.5 + 0.5 * np.cos(np.pi * np.sqrt(2) / 4)
    assert soft[9, 11] == pytest.approx(corner, abs=1e-6)
    assert torch.equal(soft_mask(block(), 32, 0.0)[0, 0].bool(), block()[0])
    assert soft_mask(block()[:0], 32, 2.0).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("seam", ["feather", "poisson"])
def test_pixels_outside_a_composite_are_real_to_the_bit(seam: str) -> None:
    head, tail = bytes_of(1, 2, 1, 32, 32), bytes_of(2, 2, 1, 32, 32)
    soft = soft_mask(block().expand(2, -1, -1), 32, 3.0)
    made = composite(head / 255, tail / 255, soft, seam)
    change = difference_decoded(made, torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32), soft)
    outside = soft == 0
    if seam == "poisson":  # nothing but the mask itself is solved for
        assert torch.equal(made[soft < 1], (head / 255)[soft < 1])
    for one in (made, change):
        assert torch.equal(one[outside], (head / 255)[outside])
        assert torch.equal(torch.from_numpy(to_uint8(one))[:, None][outside], head[outside])
    assert bool(outside.any())


def test_a_feathered_composite_is_the_tail_image_inside_and_the_mean_halfway() -> None:
    head, tail = torch.full((1, 1, 32, 32), 0.2), torch.full((1, 1, 32, 32), 0.8)
    made = composite(head, tail, soft_mask(block(), 32, 4.0))
    noisy = bytes_of(0, 2, 1, 1, 32, 32) / 255
    exact = composite(noisy[0], noisy[1], soft_mask(block(), 32, 4.0))
    assert torch.equal(exact[0][block()], noisy[1, 0][block()])
    assert made[0, 0, 12, 21] == pytest.approx(0.5, abs=1e-6)  # two of four pixels out


def test_poisson_keeps_a_gradient_and_takes_the_brightness_of_the_head() -> None:
    """Tail = head + a constant + a bump that is 0 at the edge: the constant goes, the bump stays."""
    row = np.linspace(0.2, 0.4, 32)
    head = np.tile(row, (32, 1))
    bump = np.zeros((32, 32))
    bump[11:14, 13:19] = 0.1
    made = poisson(head, head + 0.3 + bump, block()[0].numpy())
    np.testing.assert_allclose(made, head + bump, atol=1e-9)


def test_poisson_solves_laplaces_equation_for_the_difference() -> None:
    generator = np.random.default_rng(0)
    head, tail = generator.random((2, 20, 20))
    inside = np.zeros((20, 20), bool)
    inside[5:12, :9] = True  # to the border of the image, which has no condition
    u = poisson(head, tail, inside) - tail
    for i, j in np.argwhere(inside):
        near = [(i + a, j + b) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0)) if 0 <= j + b < 20]
        assert u[i, j] == pytest.approx(np.mean([u[one] for one in near]), abs=1e-9)
    np.testing.assert_array_equal(poisson(head, tail, inside)[~inside], head[~inside])
    np.testing.assert_array_equal(poisson(head, tail, np.ones_like(inside)), tail)
    np.testing.assert_array_equal(poisson(head, tail, np.zeros_like(inside)), head)


def test_a_difference_without_change_is_the_real_image_and_noise_of_the_codec_cancels() -> None:
    real, codec = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    assert torch.equal(difference_decoded(real, codec, codec, torch.ones(())), real)
    lesion = torch.zeros(3, 1, 8, 8)
    lesion[:, :, 2:4, 2:4] = 0.25
    made = difference_decoded(real * 0.5, codec + lesion, codec, torch.ones(()))
    torch.testing.assert_close(made, real * 0.5 + lesion)
    lost = difference_decoded(real, codec.index_fill(0, torch.tensor([1]), torch.nan), codec, torch.zeros(()))
    assert lost.isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_real_pixels_keep_their_resolution_and_only_the_change_is_enlarged() -> None:
    """The enlarged change of a smooth ramp is the ramp, whatever fine detail the real image has."""
    real, start = torch.rand(2, 1, 64, 64) * 0.5 + 0.1, torch.rand(2, 1, 16, 16)
    places = torch.arange(64).div(4).sub(0.375).clamp(0, 15)  # bilinear, pixel centres
    made = difference_decoded(real, start + 0.02 * torch.arange(16.0), start, torch.ones(()))
    torch.testing.assert_close(made - real, (0.02 * places).expand(2, 1, 64, 64), atol=1e-6, rtol=0)
    soft = torch.zeros(2, 1, 64, 64)
    assert torch.equal(difference_decoded(real, start + 1, start, soft), real)


def test_equal_starts_are_decoded_once() -> None:
    seen: list[int] = []

    def decode(z: Tensor) -> Tensor:
        seen.append(len(z))
        return z.mean(1, keepdim=True)

    z = torch.rand(4, 2, 3, 3)
    starts = StartDecoder(decode, most=3)
    keys = ["a", "b", "a", "c"]
    z[2] = z[0]
    assert torch.equal(starts(keys, z), z.mean(1, keepdim=True))
    assert torch.equal(starts(["c", "b"], z[[3, 1]]), z[[3, 1]].mean(1, keepdim=True))
    assert seen == [3]
    starts(["d"], z[:1])
    starts(["a"], z[:1])
    assert seen == [3, 1, 1]  # the oldest was dropped


def test_bad_settings_are_refused() -> None:
    for changed in ({"seam": "sharp"}, {"feather": 1.0}, {"feather": -0.1}):
        with pytest.raises(InputError, match="give one of feather, poisson, and a share of 0 to 1"):
            Difference(lambda uids: torch.zeros(0), StartDecoder(lambda z: z), **changed)


def whole(method: Any, rows: pd.DataFrame) -> Tensor:
    return torch.cat([batch.images for batch in method.run(rows)])


@pytest.mark.parametrize("name", ["edit", "fusion"])
def test_a_denoiser_that_changes_nothing_leaves_the_real_pixels(methods: Methods, name: str) -> None:
    """It answers the clean latent for its noise, so the decoded difference is 0 and the image is the real composite."""
    zero = label_backbone(lambda x, t, c: x, 5)
    method = methods[name](backbone=zero, scheduler=factory("ddim", 1000), guidance_scale=1.0)
    rows = method.plan({"Hernia": 2}, 3)
    if name == "edit":
        method = methods[name](backbone=zero, mixed=0.0)
        object.__setattr__(method, "_sample", lambda z, *rest: z)
        rows = method.plan({"Hernia": 2}, 3)
        assert torch.equal(whole(method, rows), method.difference.pixels(rows["tail_parent"].tolist()))
        return
    object.__setattr__(method, "_sample", lambda z, *rest: z)
    head, tail = (method.difference.pixels(rows[name].tolist()) for name in ("head_parent", "tail_parent"))
    soft = method.difference.soft(method._fuse(rows).omega, 16)
    assert torch.equal(whole(method, rows), composite(head, tail, soft))
    assert 0 < float((soft > 0).float().mean()) < 1


def test_fusion_keeps_the_head_image_outside_omega_to_the_bit(methods: Methods) -> None:
    method = methods["fusion"](rule="tail_only")
    rows = method.plan({"Hernia": 3}, 3)
    images = whole(method, rows)
    soft = method.difference.soft(method._fuse(rows).omega, 16)
    head = method.difference.pixels(rows["head_parent"].tolist())
    outside = soft == 0
    assert 0.05 < float(outside.float().mean()) < 0.95
    assert torch.equal(images[outside], head[outside])
    assert not torch.equal(images, head)


def test_an_edit_adds_the_decoded_change_to_its_parent(methods: Methods) -> None:
    plain, own = (methods["edit"](mixed=0.0, **changed) for changed in ({"difference": None}, {}))
    rows = plain.plan({"Hernia": 3}, 3)
    uids = rows["tail_parent"].tolist()
    start = plain.decode(plain.standardiser.back(plain.latents(uids)))
    expected = (own.difference.pixels(uids) + whole(plain, rows) - start).clamp(0, 1)
    torch.testing.assert_close(whole(own, rows), expected)


def test_fusion_takes_the_pixels_of_a_given_box_and_not_of_the_cells_that_it_touches(methods: Methods) -> None:
    """A box of 2 x 3 pixels touches 4 x 4 of them in cells: all others are those of the head image."""
    zero = label_backbone(lambda x, t, c: x, 5)
    method = methods["fusion"](backbone=zero, scheduler=factory("ddim", 1000), guidance_scale=1.0, rule="tail_only")
    rows = method.plan({"Hernia": 2}, 3)
    cells = method._fuse(rows).omega.shape[-2:]
    regions = Regions(boxes={"Hernia": {uid: np.array([[5, 9, 8, 11]]) / 16 for uid in rows["tail_parent"]}})
    method = replace(method, localisation=Localisation(Trust({"box": Given(regions, "box", cells)}, cells), regions))
    object.__setattr__(method, "_sample", lambda z, *rest: z)
    inside = torch.zeros(len(rows), 1, 16, 16, dtype=torch.bool)
    inside[..., 9:11, 5:8] = True
    head, tail = (method.difference.pixels(rows[name].tolist()) for name in ("head_parent", "tail_parent"))
    soft, made = method.difference.soft(inside[:, 0], 16), whole(method, rows)
    assert int(method._fuse(rows).omega.sum()) == 4 * len(rows)
    assert torch.equal(made[soft == 0], head[soft == 0])
    assert torch.equal(made[inside], tail[inside])
    assert torch.equal(made, composite(head, tail, soft))
