"""phi0: it learns from latents, is reused bit for bit, and lets gradients through to the latents only."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.classify import latents
from medlt.classify.latents import LatentClassifier, fit_latents, latent_network
from medlt.diffusion.finetune import LabelledLatents
from medlt.files import digest_tensors
from medlt.metrics.ranking import auroc
from medlt.rng import noise_like, numpy_generator, seed_of
from medlt.store import RECORD, Store
from medlt.training import loop
from medlt.training.runtime import Runtime
from medlt.types import InputError


def at(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Where and how a training runs, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", None, seed), "store": Store(folder)}


FAST: dict[str, Any] = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "patience": 9}


def shown(n: int, seed: int, channels: int = 3) -> LabelledLatents:
    """Latents [n,3,8,8] of noise; a finding lights up one half of its channel. Some labels are unknown."""
    truth = numpy_generator("latent labels", seed).random((n, 2)) < 0.4
    noise = noise_like([seed_of(seed, i) for i in range(n)], (channels, 8, 8))
    for c in range(2):
        noise[:, c, :, 4 * c : 4 * c + 4] += 1.5 * torch.from_numpy(truth[:, c]).float()[:, None, None]
    labels = np.where(numpy_generator("unknown", seed).random((n, 2)) < 0.1, np.nan, truth.astype(float))

    def get(uids: Sequence[str]) -> Tensor:
        return noise[[int(uid) for uid in uids]]

    return LabelledLatents(get, [str(i) for i in range(n)], labels, digest_tensors({"noise": noise}))


TRAIN, VAL = shown(48, 0), shown(24, 1)


def kept(folder: Path) -> Path:
    """The folder of the only classifier in a store."""
    (result,) = Store(folder).folders("latent_classifier")
    return result


def bytes_in(folder: Path) -> dict[str, bytes]:
    """The files of the only classifier in a store, but for the store's own."""
    return {path.name: path.read_bytes() for path in sorted(kept(folder).iterdir()) if path.name != RECORD}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LatentClassifier:
    """Trained for a few seconds."""
    folder = tmp_path_factory.mktemp("latents")
    return fit_latents(shown(200, 2), VAL, **at(folder), steps=40, batch_size=16, evaluate_every=20, ema_decay=0.9)


def test_it_learns_what_latents_show(trained: LatentClassifier) -> None:
    test = shown(80, 4)
    scores = trained(test.rows(np.arange(80))[0]).numpy()
    assert all(auroc(test.labels[:, c], scores[:, c]) > 0.9 for c in range(2))


def test_features_are_what_the_head_sees_and_gradients_reach_latents_only(trained: LatentClassifier) -> None:
    z = noise_like(range(5), (3, 8, 8)).requires_grad_()
    features = trained.features(z)
    assert features.shape == (5, 256)
    torch.testing.assert_close(trained.net.head(features), trained(z))
    (gradient,) = torch.autograd.grad(features.square().sum(), z)
    assert bool((gradient.abs().flatten(1).sum(1) > 0).all())
    assert not any(weight.requires_grad for weight in trained.net.parameters())
    assert not trained.net.training
    exact = deepcopy(trained.net).double()
    assert torch.autograd.gradcheck(exact.features, z[:1, :, :2, :2].detach().double().requires_grad_())


def test_a_rerun_is_bitwise_equal_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_latents(TRAIN, VAL, **at(tmp_path / "a"), **FAST)
    assert torch.equal(torch.get_rng_state(), before)
    again = fit_latents(TRAIN, VAL, **at(tmp_path / "b"), **FAST)
    other = fit_latents(TRAIN, VAL, **at(tmp_path / "c", 1), **FAST)
    assert bytes_in(tmp_path / "a") == bytes_in(tmp_path / "b")
    assert len(bytes_in(tmp_path / "a")) == 2
    assert set(bytes_in(tmp_path / "a").values()).isdisjoint(bytes_in(tmp_path / "c").values())
    assert first.digest == again.digest != other.digest

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "fit", never)
    assert fit_latents(TRAIN, VAL, **at(tmp_path / "a"), **FAST).digest == first.digest
    other_pixels = replace(TRAIN, contents="those of other images")
    for data, changed in ((TRAIN, {"learning_rate": 2e-3}), (shown(48, 9), {}), (other_pixels, {})):
        with pytest.raises(AssertionError, match="trained again"):
            fit_latents(data, VAL, **at(tmp_path / "a"), **(FAST | changed))


def test_a_flipped_byte_is_detected_set_aside_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fit_latents(TRAIN, VAL, **at(tmp_path), **FAST)
    whole, place = bytes_in(tmp_path), kept(tmp_path)
    damaged = bytearray(whole["classifier.safetensors"])
    damaged[-100] ^= 1
    (place / "classifier.safetensors").write_bytes(damaged)
    assert fit_latents(TRAIN, VAL, **at(tmp_path), **FAST).digest == first.digest
    assert bytes_in(tmp_path) == whole
    assert (place.with_suffix(".damaged-1") / "classifier.safetensors").read_bytes() == damaged
    assert "is damaged" in caplog.text


def test_the_best_evaluation_is_kept_and_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def worse_and_worse(_: np.ndarray, scores: np.ndarray) -> float:
        seen.append(scores)
        return 1 / len(seen)

    monkeypatch.setattr(latents, "macro_average_precision", worse_and_worse)
    options = FAST | {"steps": 40, "patience": 2, "learning_rate": 3e-3, "warm_up": 0.0}
    record = fit_latents(TRAIN, VAL, **at(tmp_path), **options).record
    assert (record["best_step"], len(seen)) == (2, 3)
    assert [row["step"] for row in record["history"]] == [2, 4, 6]


def test_a_row_is_seen_by_itself_and_one_of_unknown_labels_not_at_all() -> None:
    """No batch statistics even in training: the loss of a batch is that of its known rows alone."""
    net, loss = latent_network(3, 2), latents.named_loss("balanced", torch.zeros(4, 2))
    z = noise_like(range(8), (3, 8, 8))
    labels = torch.tensor([[1.0, 0.0]] * 4 + [[torch.nan, torch.nan]] * 4)
    whole = loss(net(z), labels, torch.ones(8))
    torch.testing.assert_close(whole, loss(net(z[:4]), labels[:4], torch.ones(4)))


def test_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="latents and findings of train"):
        fit_latents(TRAIN, shown(4, 0, channels=4), **at(tmp_path))
    with pytest.raises(TypeError, match="unexpected keyword"):
        fit_latents(TRAIN, VAL, **at(tmp_path), sweeps=3)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_any_latent_size_has_features(size: int) -> None:
    net = latent_network(4, 3, seed=1)
    z = noise_like(range(2), (4, size, size))
    assert net.features(z).shape == (2, 256)
    assert net(z).shape == (2, 3)
    assert net.body.conv1.stride == (1, 1)
