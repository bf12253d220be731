"""The loss of a trained codec, against closed forms, and what it makes a codec keep."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medlt.classify.classifier import Classifier
from medlt.classify.feature_maps import STAGES, ClassifierMaps
from medlt.classify.networks import NETWORKS, network
from medlt.diffusion.emphasis import PLAIN, Emphasis, feature_errors, gradient_errors
from medlt.diffusion.train_codec import train_codec
from medlt.rng import numpy_generator, torch_generator
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", 1, 0)
ROWS = np.arange(3)


def random(*shape: int, key: str = "x") -> Tensor:
    return torch.rand(shape, generator=torch_generator(key)) * 2 - 1


class Doubled:
    """Two layers, the image in [0,1] and its double."""

    digest = "doubled"

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [images, 2 * images]


def maps(name: str) -> ClassifierMaps:
    return ClassifierMaps(Classifier(network(name, 3, seed=1), 32, {}))


def test_without_weights_it_is_l1_of_each_image() -> None:
    x, out = random(3, 1, 8, 8), random(3, 1, 8, 8, key="out")
    torch.testing.assert_close(PLAIN.errors(out, x, ROWS), (out - x).abs().mean((1, 2, 3)))


def test_pixels_of_a_lesion_weigh_more_and_the_map_is_that_of_the_row() -> None:
    x = torch.zeros(3, 1, 8, 8)
    lesions = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    lesions[3, 0, :4] = 255  # the upper half of row 3
    emphasis = Emphasis(lesion_weight=3.0, lesions=lesions)
    out = x.clone()
    out[:, :, 0] = 1.0  # an error in the first row of pixels: 8 of 64
    errors = emphasis.errors(out, x, np.array([3, 1, 3]))
    assert errors.tolist() == pytest.approx([4 / 8, 1 / 8, 4 / 8])
    below = torch.zeros_like(x)
    below[:, :, 7] = 1.0
    assert emphasis.errors(below, x, np.array([3, 1, 3])).tolist() == pytest.approx([1 / 8] * 3)


def test_a_map_of_another_size_is_resized() -> None:
    lesions = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    x, out = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5)
    assert float(Emphasis(lesion_weight=1.0, lesions=lesions).errors(out, x, np.array([0]))) == pytest.approx(1.0)


def test_features_are_compared_in_units_of_each_layer() -> None:
    """The second layer is the double of the first, and counts no more."""
    x = random(3, 1, 8, 8)
    out = x + 0.2  # 0.1 in [0,1]
    expected = 0.1 / float(((x + 1) / 2).mean())
    torch.testing.assert_close(feature_errors(Doubled(), out, x), torch.full((3,), expected))
    total = Emphasis(feature_weight=0.5, features=Doubled()).errors(out, x, ROWS)
    torch.testing.assert_close(total, torch.full((3,), 0.2 + 0.5 * expected))


def test_edges_are_added() -> None:
    x, out = random(3, 1, 16, 16), random(3, 1, 16, 16, key="out")
    torch.testing.assert_close(
        Emphasis(edge=2.0).errors(out, x, ROWS), (out - x).abs().mean((1, 2, 3)) + 2 * gradient_errors(out, x)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_maps_of_every_network_are_those_of_its_own_pass(name: str) -> None:
    """The last map, run through the rest of the network, gives its features; gradients reach the image alone."""
    seen = maps(name)
    x = ((random(2, 1, 64, 64) + 1) / 2).requires_grad_()
    stages = seen(x)
    assert len(stages) == STAGES
    assert [len(one) for one in stages] == [2] * STAGES
    sides = [one.shape[-1] for one in stages]
    assert sides == sorted(sides, reverse=True)
    body: Any = seen.net.body
    rest = [body.layer4, body.avgpool] if hasattr(body, "layer4") else [
        body.features.transition3, body.features.denseblock4, body.features.norm5, body.class_layers]  # fmt: skip
    torch.testing.assert_close(
        torch.nn.Sequential(*rest)(stages[-1].clone()).flatten(1),
        seen.net.features(x),
        atol=1e-5,
        rtol=1e-4,
    )
    (gradient,) = torch.autograd.grad(sum(one.sum() for one in stages), x)
    assert gradient.abs().sum() > 0
    assert all(not weight.requires_grad for weight in seen.net.parameters())


def test_the_classifier_itself_stays_as_it_was() -> None:
    classifier = Classifier(network("small", 3), 32, {})
    ClassifierMaps(classifier)
    assert all(weight.requires_grad for weight in classifier.net.parameters())


def test_the_digest_names_what_decides_the_loss_and_nothing_else() -> None:
    lesions = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    ones = [
        PLAIN, Emphasis(edge=1.0), Emphasis(lesion_weight=1.0, lesions=lesions),
        Emphasis(lesion_weight=1.0, lesions=lesions + 1), Emphasis(lesion_weight=2.0, lesions=lesions),
        Emphasis(feature_weight=1.0, features=Doubled()), Emphasis(feature_weight=1.0, features=maps("small")),
    ]  # fmt: skip
    assert len({one.digest for one in ones}) == len(ones)
    assert Emphasis(lesions=lesions, features=Doubled()).digest == PLAIN.digest
    assert maps("small").digest == maps("small").digest


class Spots:
    """Noisy images with one faint spot of 2 x 2 pixels each, at another place."""

    def __init__(self, n: int) -> None:
        self.images, self.masks = torch.zeros(n, 1, 16, 16), torch.zeros(n, 1, 16, 16, dtype=torch.uint8)
        self.twins = self.images.clone()
        for i in range(n):
            rng = numpy_generator("spot", i)
            wave = torch.from_numpy(rng.random((1, 1, 4, 4)).astype(np.float32))
            self.twins[i] = 0.3 + 0.4 * functional.interpolate(wave, (16, 16), mode="bilinear")[0]
            top, left = rng.integers(2, 12, 2)
            self.masks[i, :, top : top + 2, left : left + 2] = 255
            self.images[i] = self.twins[i] + 0.15 * self.masks[i] / 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"uid": str(index), "image": self.images[index]}


def test_a_codec_whose_loss_weighs_lesions_keeps_more_of_unseen_ones(tmp_path: Path) -> None:
    from medlt.checks.codec import by_twin

    train, unseen = Spots(64), Spots(96)
    options: dict[str, Any] = {"contents": "spots", "runtime": CPU, "store": Store(tmp_path), "width": 8, "levels": 2,
                               "channels": 1, "batch_size": 8, "steps": 60, "learning_rate": 1e-2}  # fmt: skip
    given = Emphasis(lesion_weight=20.0, lesions=train.masks)
    kept = []
    for emphasis in (PLAIN, given):
        codec = train_codec(train, emphasis=emphasis, **options)
        x, twin = unseen.images[64:], unseen.twins[64:]
        back = [codec.decode(codec.latents(codec.moments(one))) for one in (x, twin)]
        kept.append(by_twin(x, twin, *back, [str(i) for i in range(32)]).kept(50, numpy_generator(0))[0])
    assert kept[1] > kept[0] + 0.05
    assert kept[1] < 1.5


def test_features_of_another_network_are_refused_in_a_private_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="perceptual_weight is not in the ledger"):
        train_codec(
            Spots(4), contents="spots", runtime=replace(CPU, seed=1), store=Store(tmp_path), patients=list("abcd"),
            emphasis=Emphasis(feature_weight=1.0, features=Doubled()), private=lambda *_: None,  # type: ignore[arg-type]
        )  # fmt: skip
