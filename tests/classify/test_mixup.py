"""Mixing: images, labels and weights by one number, in the published direction, and what is unknown stays unknown."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from medlt.classify.batches import Batches
from medlt.classify.mixup import ClassifierBatch, blend, share, shuffled
from medlt.classify.sets import TrainingSet
from medlt.classify.training_strategies import Stage
from medlt.rng import batch_indices, numpy_generator
from medlt.types import InputError


def batch(seed: int, rows: int = 4) -> ClassifierBatch:
    g = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0.0, 1.0, math.nan])[torch.randint(3, (rows, 2), generator=g)]
    return ClassifierBatch(torch.rand(rows, 1, 3, 3, generator=g), labels, torch.rand(rows, generator=g))


def shades(rare: int = 2, common: int = 18) -> TrainingSet:
    """Finding 0 is common and dark (grey 0), finding 1 rare and bright (grey 255); one label a row; weights tell."""
    labels = np.repeat(np.eye(2, dtype=np.float32), (common, rare), axis=0)
    images = torch.from_numpy(labels[:, 1]).mul(255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    weights = np.where(labels[:, 1] == 1, 0.5, 1.0).astype(np.float32)
    return TrainingSet(images.contiguous(), labels, weights, tuple(map(str, range(rare + common))))


def batches(mixup: str, **options: object) -> Batches:
    where = {"device": torch.device("cpu"), **options}
    return Batches(shades(), None, Stage(), seed=3, batch_size=64, augment="none", mixup=mixup, **where)  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**16), part=st.floats(0, 1))
def test_everything_is_mixed_by_the_same_number(seed: int, part: float) -> None:
    a, b = batch(seed), batch(seed + 1)
    result = blend(a, b, part)
    torch.testing.assert_close(result.images, torch.lerp(a.images, b.images, part))
    torch.testing.assert_close(result.weights, torch.lerp(a.weights, b.weights, part))
    for y, one, other in zip(result.labels.flatten(), a.labels.flatten(), b.labels.flatten(), strict=True):
        sides = [(1 - part, float(one)), (part, float(other))]
        want = sum(w * v for w, v in sides if w > 0)
        assert math.isnan(y) == math.isnan(want)
        assert math.isnan(want) or float(y) == pytest.approx(want, abs=1e-6)


def test_shares_are_drawn_as_published() -> None:
    for name, second in (("mixup", 0.3), ("balanced", 1.0)):
        drawn = [share(name, 0.3, numpy_generator("test", name, n)) for n in range(2000)]
        assert kstest(drawn, beta(0.3, second).cdf).pvalue > 0.01
    with pytest.raises(InputError, match="mixup_alpha is 0"):
        share("mixup", 0.0, numpy_generator("test"))


def test_plain_mixup_mixes_a_batch_with_itself_in_another_order() -> None:
    for step in range(5):
        plain, mixed = batches("none")(step), batches("mixup")(step)
        drawn = numpy_generator(3, "mixup", step)
        part = share("mixup", 0.2, drawn)
        want = blend(plain, shuffled(plain, drawn), part)
        assert torch.equal(mixed.images, want.images)
        torch.testing.assert_close(mixed.images.mean(), plain.images.mean())  # nothing enters from outside the batch


def test_balanced_mixup_adds_the_drawn_share_of_a_class_balanced_batch() -> None:
    """Grey tells how much of an image is rare: labels must say the same, and weights 1 - grey / 2."""
    seen = []
    for step in range(200):
        mixed = batches("balanced", mixup_alpha=0.5)(step)
        grey = mixed.images[:, 0, 0, 0]
        torch.testing.assert_close(mixed.labels[:, 1], grey)
        torch.testing.assert_close(mixed.labels[:, 0], 1 - grey)
        torch.testing.assert_close(mixed.weights, 1 - grey / 2)
        part = share("balanced", 0.5, numpy_generator(3, "mixup", step))
        seen.append((part, float(grey.mean())))
    parts, greys = np.array(seen).T
    # 1 in 10 rows is rare as they come, 1 in 2 by class: the mean grey is 0.1 (1 - l) + 0.5 l
    assert np.abs(greys - (0.1 + 0.4 * parts)).max() < 0.25
    assert np.polyfit(parts, greys, 1) == pytest.approx([0.4, 0.1], abs=0.02)


def test_a_small_alpha_leaves_images_mostly_as_they_come() -> None:
    parts = [share("balanced", 0.1, numpy_generator("small", n)) for n in range(500)]
    assert np.mean(np.array(parts) < 0.1) > 0.7


def test_the_first_batch_is_that_of_every_arm() -> None:
    """With l near 0 what is seen is the instance-sampled batch of the plain arm."""
    plain, mixed = batches("none")(7), batches("balanced", mixup_alpha=1e-9)(7)
    assert torch.equal(plain.images, mixed.images)
    rows = batch_indices(20, 64, 7, 3, "real")
    assert torch.equal(plain.images, shades().images[rows] / 255)
