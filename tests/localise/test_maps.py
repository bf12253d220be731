"""Maps of classifiers: a row alone gives its bytes, shifts are moved back, and a planted lesion is located."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.classify.cam import frozen, layer_activation_map, layer_maps
from medlt.classify.networks import network
from medlt.classify.train import Classifier, TrainingSet, fit_classifier
from medlt.localise.maps import ImageMap, mean_over_shifts, shifted
from medlt.metrics.localisation import measures
from medlt.rng import numpy_generator
from medlt.store import Store
from medlt.training.runtime import Runtime

UIDS = [f"u{i}" for i in range(7)]
IMAGES = torch.rand(7, 1, 64, 64, generator=torch.Generator().manual_seed(0))
FINDINGS = ("Mass", "Nodule", "Effusion")


def images(uids: Sequence[str]) -> Tensor:
    return IMAGES[[UIDS.index(uid) for uid in uids]]


def members(count: int = 3, name: str = "small") -> list[Classifier]:
    return [Classifier(network(name, 3, seed), 64, {}) for seed in range(count)]


def test_a_row_alone_reversed_and_in_other_company_gives_its_bytes() -> None:
    stage = ImageMap(members(2), images, FINDINGS, (16, 16))
    together = stage(UIDS, "Nodule")
    assert together.shape == (7, 16, 16)
    assert together.amax((1, 2)).tolist() == [1.0] * 7
    assert together.min() >= 0
    assert torch.equal(stage(UIDS[::-1], "Nodule").flip(0), together)
    assert torch.equal(stage(UIDS[3:4], "Nodule")[0], together[3])
    assert not torch.allclose(stage(UIDS[3:4], "Mass")[0], together[3], atol=0.01)
    assert stage([], "Mass").shape == (0, 16, 16)


@pytest.mark.parametrize("name", ["small", "dense"])
def test_the_layers_are_those_of_the_network_and_weigh_supporting_channels_alone(name: str) -> None:
    """LayerCAM of the last layer, from the head's weights: under a global mean, d logit_c / d f_k = w_ck / (h w)."""
    net = frozen(members(1, name)[0])
    column = torch.tensor([0, 2, 1, 1, 0, 2, 1])
    maps = layer_maps(net, IMAGES, column, (1, 2, 3, 4))
    sides = [one.shape[-1] for one in maps]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > sides[2]
    if name == "small":
        kept: list[Tensor] = []
        handle = net.body.layer4.register_forward_hook(lambda module, args, out: kept.append(out))  # type: ignore[operator, union-attr]
        with torch.no_grad():
            net(IMAGES)
        handle.remove()
        weights = net.head.weight[column].relu() / kept[0][0, 0].numel()
        expected = torch.einsum("bk,bkyx->byx", weights, kept[0])
        torch.testing.assert_close(maps[3], expected, atol=1e-5, rtol=1e-3)


def test_shifts_are_moved_back() -> None:
    """A map that is the image itself comes back as the image, away from the border."""
    x = IMAGES[:, :, 8:24, 8:24]
    for down, right in ((3, 0), (0, -2), (1, 1)):
        moved = shifted(x, down, right)
        assert moved.shape == x.shape
        torch.testing.assert_close(moved[..., 8 + down, 8 + right], x[..., 8, 8])
        torch.testing.assert_close(shifted(moved, -down, -right)[..., 4:-4, 4:-4], x[..., 4:-4, 4:-4])
    net = frozen(members(1)[0])
    column = torch.zeros(7, dtype=torch.long)
    mean, single = mean_over_shifts(net, IMAGES, column), layer_activation_map(net, IMAGES, column)
    assert mean.shape == single.shape == (7, 64, 64)


def test_the_member_that_checks_an_image_does_not_see_it() -> None:
    three = members(3)
    stage = ImageMap(three, images, FINDINGS, (8, 8), {"u0": 1, "u1": 0})
    maps = stage(["u0", "u1", "u2"], "Mass")
    for row, kept in enumerate(((0, 2), (1, 2), (0, 1, 2))):
        alone = ImageMap([three[k] for k in kept], images, FINDINGS, (8, 8))([UIDS[row]], "Mass")
        torch.testing.assert_close(maps[row], alone[0])
    everybody = ImageMap(three, images, FINDINGS, (8, 8))(["u0"], "Mass")
    assert not torch.allclose(maps[0], everybody[0], atol=0.01)


def test_eight_bit_images_are_scaled() -> None:
    eight = (IMAGES * 255).round().to(torch.uint8)

    def stored(uids: Sequence[str]) -> Tensor:
        return eight[[UIDS.index(uid) for uid in uids]]

    def scaled(uids: Sequence[str]) -> Tensor:
        return stored(uids).float() / 255

    maps = [ImageMap(members(1), source, FINDINGS, (8, 8))(UIDS, "Mass") for source in (stored, scaled)]
    assert torch.equal(*maps)


def blobs(n: int, seed: int) -> tuple[TrainingSet, np.ndarray]:
    """Noise with a bright spot somewhere in the positives of the first finding, and the places of the spots."""
    rng = numpy_generator("blobs", seed)
    pixels, where = rng.normal(110, 12, (n, 64, 64)), np.zeros((n, 64, 64))
    labels = np.stack([np.arange(n) % 2, rng.random(n) < 0.5], 1).astype(np.float32)
    for i in np.flatnonzero(labels[:, 0] == 1):
        top, left = rng.integers(4, 48, 2)
        where[i, top : top + 12, left : left + 12] = 1
    pixels += 45 * where
    held = torch.from_numpy(pixels.clip(0, 255)).to(torch.uint8)[:, None]
    return TrainingSet(held, labels, np.ones(n, np.float32), tuple(f"u{i}" for i in range(n))), where


@pytest.mark.slow
def test_a_planted_spot_is_located_by_a_trained_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The places are never trained on: only the labels are."""
    train, _ = blobs(160, 0)
    held, where = blobs(40, 1)
    runtime, store = Runtime("cpu", "fp32", 1, 0), Store(tmp_path_factory.mktemp("blobs"))
    one = fit_classifier(
        train, held, runtime=runtime, store=store, steps=150, batch_size=32, evaluate_every=150, patience=1,
        augment="none",
    )  # fmt: skip
    stage = ImageMap([one], lambda uids: held.take(uids).images, ("Spot", "Coin"), (16, 16))
    positive = np.flatnonzero(held.labels[:, 0] == 1)
    maps = stage([held.uids[i] for i in positive], "Spot")
    cover = where[positive].reshape(-1, 16, 4, 16, 4).mean((2, 4))
    assert np.mean(measures(maps.numpy(), cover)["auroc"]) > 0.9
