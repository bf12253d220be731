"""Activation maps of image classifiers: a batch gives what one at a time gives, and the map is the known one."""

from typing import Any

import pytest
import torch

from medlt.classify.cam import class_activation_map
from medlt.classify.networks import Network, network
from medlt.classify.train import Classifier
from medlt.types import InputError

IMAGES = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
FINDING = torch.tensor([0, 2, 1, 2, 0])


@pytest.mark.parametrize("name", ["small", "dense"])
def test_a_batch_gives_what_one_at_a_time_gives(name: str) -> None:
    classifier = Classifier(network(name, 3, 1), 64, {})
    together = class_activation_map(classifier, IMAGES, FINDING)
    alone = [class_activation_map(classifier, IMAGES[i : i + 1], FINDING[i : i + 1])[0] for i in range(5)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-3)
    assert together.amax((1, 2)).max() == 1
    torch.testing.assert_close(class_activation_map(classifier, IMAGES, FINDING, chunk=2), together, rtol=0, atol=1e-3)


def test_grad_cam_of_pooled_features_is_the_heads_weights_times_the_maps() -> None:
    """Under mean pooling and a linear head d logit_c / d f_k = w_ck / (h w): the map is known without a gradient."""
    classifier = Classifier(network("small", 3, 1), 64, {})
    body: Any = classifier.net.eval().body
    with torch.no_grad():
        x = body.act(body.bn1(body.conv1(classifier.net.standardise(IMAGES))))
        x = x if body.no_max_pool else body.maxpool(x)
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = layer(x)
        raw = torch.einsum("bk,bkyx->byx", classifier.net.head.weight[FINDING], x).relu()
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    expected = (raw - low) / torch.where(high > low, high - low, 1.0)
    torch.testing.assert_close(class_activation_map(classifier, IMAGES, FINDING), expected, rtol=0, atol=1e-3)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="'saliency' is not a method"):
        class_activation_map(Classifier(network("small", 3), 64, {}), IMAGES, FINDING, "saliency")
    with pytest.raises(InputError, match="Flatten has no known last feature map"):
        class_activation_map(Classifier(Network(torch.nn.Flatten(), torch.nn.Linear(4096, 3)), 64, {}), IMAGES, FINDING)
