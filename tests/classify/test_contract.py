"""What every classifier network keeps, those on pretrained weights included."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medlt.classify.cam import class_activation_map
from medlt.classify.classifier import in_precision
from medlt.classify.epistemic import fit_epistemic
from medlt.classify.feature_maps import ClassifierMaps
from medlt.classify.networks import NETWORKS, Network
from medlt.classify.settings import ClassifierSettings
from medlt.classify.train import Classifier, TrainingSet, fit_classifier
from medlt.store import Store
from medlt.training.runtime import Runtime
from medlt.types import InputError

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("weights.py"))))
PRETRAINED = ("pretrained densenet121", "pretrained resnet50")
FOLDERS = tuple(f"folder {name}" for name in published.MODELS)
NAMES = (*NETWORKS, *PRETRAINED, *FOLDERS)
LARGE = {"densenet121", "resnet50", *PRETRAINED}
TRAINED = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NAMES]
FINDINGS = 3


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The settings of a network by its name in NAMES; weights are written once."""
    place = tmp_path_factory.mktemp("weights")

    def settings(name: str) -> dict[str, Any]:
        kind, _, of = name.partition(" ")
        path = place / name.replace(" ", "_")
        if kind not in ("pretrained", "folder"):
            return {"network": name}
        if not path.exists() and kind == "folder":
            published.write_model(of, path)
        elif not path.exists():
            own = published.densenet121() if of == "densenet121" else published.resnet50(published.resnet50_model())
            published.write(own, path)
        return {"network": of if kind == "pretrained" else "folder", "weights": path}

    return settings


def size_of(name: str) -> int:
    kind, _, of = name.partition(" ")
    return int(published.MODELS[of][2]) if kind == "folder" else 64


def rows(name: str, n: int, prefix: str) -> TrainingSet:
    rng, size = np.random.default_rng(len(prefix) + n), size_of(name)
    labels = np.eye(FINDINGS, dtype=np.float32)[np.arange(n) % FINDINGS]
    images = torch.from_numpy(rng.integers(0, 255, (n, 1, size, size)).astype(np.uint8))
    return TrainingSet(images, labels, np.ones(n, np.float32), tuple(f"{prefix}{i}" for i in range(n)))


def trained(name: str, settings: dict[str, Any], folder: Path, seed: int = 0, **more: Any) -> Classifier:
    fast = {"steps": 2, "batch_size": 4, "evaluate_every": 2, "patience": 9}
    where = {"runtime": Runtime("cpu", "fp32", 1, seed), "store": Store(folder)}
    return fit_classifier(rows(name, 9, "u"), rows(name, 6, "val"), **where, **{**fast, **settings, **more})


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_gives_what_it_promises(
    tmp_path: Path, settings_of: Callable[[str], dict[str, Any]], name: str
) -> None:
    settings, val = settings_of(name), rows(name, 6, "val").images
    first = trained(name, settings, tmp_path / "a")
    scores, features = first.predict(val), first.features(val)
    assert scores.shape == (6, FINDINGS)
    assert features.shape == (6, first.net.head.in_features)
    assert features.std(0).max() > 0, "features that are the same for all images tell nothing"
    torch.testing.assert_close(first.predict_from(features), scores, atol=1e-6, rtol=0)
    again, other = trained(name, settings, tmp_path / "b"), trained(name, settings, tmp_path / "a", seed=1)
    assert torch.equal(again.predict(val), scores)
    assert not torch.equal(other.predict(val), scores)
    alone = torch.cat([first.predict(val[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, scores, atol=2e-2, rtol=0)  # bfloat16 rounds by the size of a batch
    with torch.no_grad():
        exact = [first.net(part.float() / 255) for part in (val, val[2:3])]
    torch.testing.assert_close(exact[0][2:3], exact[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_float32_and_gradients_reach_the_image(
    settings_of: Callable[[str], dict[str, Any]], name: str
) -> None:
    net = fresh(settings_of(name)).eval()
    images = rows(name, 2, "u").images.float().div(255).requires_grad_()
    seen: list[torch.dtype] = []
    net.head.register_forward_hook(lambda part, given, logits: seen.append(logits.dtype))
    logits = in_precision(net, images)
    assert seen == [torch.float32]
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def fresh(settings: dict[str, Any]) -> Network:
    from medlt.classify.heads import classifier_network

    chosen = ClassifierSettings(**settings)
    weights = chosen.pretrained
    net = classifier_network(chosen.network, "balanced", FINDINGS, 1, weights.spec if weights else None)
    if weights:
        weights.load(net)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_offered_or_refused_in_a_line(settings_of: Callable[[str], dict[str, Any]], name: str) -> None:
    classifier = Classifier(fresh(settings_of(name)).eval(), size_of(name), {})
    images, finding = rows(name, 3, "u").images.float() / 255, torch.tensor([0, 1, 2])
    if name.startswith("folder"):
        with pytest.raises(InputError, match="VisionModel has no known"):
            class_activation_map(classifier, images, finding)
        with pytest.raises(InputError, match="VisionModel has no known"):
            ClassifierMaps(classifier)
        return
    together = class_activation_map(classifier, images, finding)
    alone = [class_activation_map(classifier, images[i : i + 1], finding[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-3)
    assert [one.shape[0] for one in ClassifierMaps(classifier)(images)] == [3] * 4


@pytest.mark.parametrize("name", ["resnet50", "pretrained densenet121", "folder dinov2", "folder swin"])
def test_an_epistemic_head_can_be_trained_on_it(
    tmp_path: Path, settings_of: Callable[[str], dict[str, Any]], name: str
) -> None:
    """Longtail Guidance takes the gradient of the members' disagreement through the network."""
    classifier = Classifier(fresh(settings_of(name)).eval(), size_of(name), {})
    runtime = Runtime("cpu", "fp32", 1, 0)
    head = fit_epistemic(classifier, rows(name, 9, "u"), runtime=runtime, store=Store(tmp_path), steps=2, members=2)
    images = rows(name, 2, "u").images.float().div(255).requires_grad_()
    head.logits(images).var(0).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_full_precision_is_what_it_says(tmp_path: Path, settings_of: Callable[[str], dict[str, Any]]) -> None:
    val = rows("small", 6, "val").images
    exact = trained("small", {"network": "small"}, tmp_path / "a", precision="fp32")
    with torch.no_grad():
        torch.testing.assert_close(exact.net(val.float() / 255).sigmoid(), exact.predict(val), atol=1e-6, rtol=0)
    assert exact.precision == "fp32"
    assert not torch.equal(exact.predict(val), trained("small", {"network": "small"}, tmp_path / "a").predict(val))
