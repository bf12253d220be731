"""The denoiser and the codec learn, and a training that was cut goes on to the same bits."""

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion.autoencoder import AutoencoderLoss, Reconstruction
from medlt.diffusion.codec import load_codec
from medlt.diffusion.labels import LabelUNet, LabelVector
from medlt.diffusion.losses import NoisedLoss, snr_weight
from medlt.diffusion.noise import STABLE_DIFFUSION, Prediction, target_of, x0_of
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.diffusion.train import train_denoiser
from medlt.diffusion.train_codec import train_codec
from medlt.diffusion.vae import finetune_codec
from medlt.files import read_tensors
from medlt.rng import batch_indices, noise_like, torch_generator
from medlt.store import Store
from medlt.testing import Discs
from medlt.training.checkpoint import FILE
from medlt.training.loop import fit
from medlt.training.runtime import Precision, Runtime
from medlt.training.settings import Training
from medlt.types import InputError

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
N = 24
CPU = Runtime("cpu", "fp32", None, 5)
UIDS = [f"u{i}" for i in range(N)]
LABELS = np.stack([np.arange(N) % 2, np.where(np.arange(N) % 3, 1.0, np.nan)], 1)


def latents(uids: Sequence[str]) -> Tensor:
    """Odd uids are bright, even ones dark: the first label tells which."""
    at = [int(uid[1:]) for uid in uids]
    level = torch.tensor([2.0 * (i % 2) - 1 for i in at]).reshape(-1, 1, 1, 1)
    return level + 0.1 * noise_like(at, (2, 8, 8))


def train(folder: Path, steps: int, **changes: Any) -> LabelUNet:
    options: dict[str, Any] = {"width": 8, "batch_size": 4, "checkpoint_every": 3, "runtime": CPU} | changes
    return train_denoiser(latents, UIDS, LABELS, contents="levels", folder=folder, steps=steps, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_parameterisation_gives_x0_back(prediction: Prediction) -> None:
    x0, n = noise_like([1, 2], (2, 4, 4)), noise_like([3, 4], (2, 4, 4))
    a = torch.tensor([0.9, 0.2]).reshape(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * n
    torch.testing.assert_close(x0_of(target_of(x0, n, a, prediction), x_t, a, prediction), x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weighted_losses_are_one_loss_on_x0(prediction: Prediction) -> None:
    """An error d in the network's answer is some error in x0, and SNR cut to 1..5 weighs that, whatever is said."""
    a = torch.tensor([0.001, 0.3, 0.7, 0.99])
    x_t, out, d = torch.zeros(4), torch.zeros(4), 0.1
    x0_error = x0_of(out + d, x_t, a, prediction) - x0_of(out, x_t, a, prediction)
    expected = (a / (1 - a)).clamp(1, 5) * x0_error**2
    torch.testing.assert_close(snr_weight(a, prediction) * d**2, expected, atol=1e-6, rtol=1e-3)


def test_a_perfect_network_has_no_loss_and_a_silent_one_that_of_its_target() -> None:
    x0, labels, null = noise_like(range(64), (2, 4, 4)), torch.zeros(64, 3), torch.zeros(3)

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, *_: Tensor) -> Tensor:
            return torch.zeros_like(x)

    class Perfect(Silent):
        def forward(self, x: Tensor, *_: Tensor) -> Tensor:
            return x0

    assert float(NoisedLoss("sample", null)(Perfect(), x0, labels, 0.0, torch_generator(1))) == 0
    t = torch.randint(0, 1000, (64,), generator=torch_generator(1))
    weight = snr_weight(STABLE_DIFFUSION.abar()[t], "sample")
    expected = (weight * x0.pow(2).flatten(1).mean(1)).mean()
    torch.testing.assert_close(NoisedLoss("sample", null)(Silent(), x0, labels, 0.0, torch_generator(1)), expected)


def test_unknown_negative_positive_and_dropped_conditions_differ_and_nan_is_no_nan() -> None:
    net = LabelUNet(2, 1, width=8)
    nn.init.normal_(net.label.null, generator=torch_generator("null"))
    vector = LabelVector(1)
    told = vector(torch.tensor([[1.0], [0.0], [float("nan")]]))
    said = net.label(torch.cat([told, vector.null[None]]))
    assert said.isfinite().all()
    assert torch.cdist(said, said).add(torch.eye(4)).min() > 1e-4
    torch.testing.assert_close(said[3], net.label.null)


def test_a_network_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    net = LabelUNet(2, 3, width=16, levels=3, prediction="epsilon").eval()
    net.save(tmp_path)
    again = LabelUNet.load(tmp_path)
    x, t, labels = (
        noise_like([1], (2, 8, 8)),
        torch.tensor([300]),
        LabelVector(3)(torch.tensor([[1.0, 0.0, float("nan")]])),
    )
    assert again.backbone().prediction == "epsilon"
    assert again.backbone().digest == net.backbone().digest
    assert torch.equal(net(x, t, labels), again(x, t, labels))
    with pytest.raises(InputError, match=r"contains no denoiser \(model\.json is missing\)"):
        LabelUNet.load(tmp_path / "nothing")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_cut_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "cut", 4)
    resumed = train(tmp_path / "cut", 8)
    assert same(whole, resumed)
    states = [read_tensors(tmp_path / name / FILE) for name in ("whole", "cut")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name != "validation")
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / name / "history.parquet") for name in ("whole", "cut")))


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def power_cut(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = train(tmp_path / "whole", 7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", 7, runtime=replace(CPU, progress=power_cut))
    seen: list[int] = []
    watched = replace(CPU, progress=lambda stage, done, total: seen.append(done))
    assert same(whole, train(tmp_path / "killed", 7, runtime=watched))
    assert seen == [4, 5, 6, 7]


def test_a_finished_training_is_loaded_and_another_is_refused(tmp_path: Path) -> None:
    net, seen = train(tmp_path, 3), list[int]()
    watched = replace(CPU, progress=lambda stage, done, total: seen.append(done))
    assert same(net, train(tmp_path, 3, runtime=watched))
    assert same(net, LabelUNet.load(tmp_path))
    assert seen == []
    with pytest.raises(InputError, match="other settings or data"):
        train(tmp_path, 3, learning_rate=1e-2)


def test_the_seed_decides(tmp_path: Path) -> None:
    assert not same(train(tmp_path / "a", 2), train(tmp_path / "b", 2, runtime=replace(CPU, seed=6)))


def test_rows_and_uids_must_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="23 uids but 24 label rows"):
        train_denoiser(latents, UIDS[:23], LABELS, contents="levels", folder=tmp_path, runtime=CPU)


def test_the_denoiser_learns_what_the_label_says(tmp_path: Path) -> None:
    """Labelled bright or dark, samples have that level; the loss on held fixed noise falls."""
    net = train(
        tmp_path, 90, batch_size=16, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=30, validation=(UIDS, LABELS)
    )
    history = pd.read_parquet(tmp_path / "history.parquet")
    validation = history["validation"].dropna()
    assert list(validation.index) == [30, 60, 90]
    assert validation.iloc[-1] < 0.6 * validation.iloc[0]
    assert history["loss"].notna().all()
    steps, backbone = scheduler("ddim", 8), net.backbone()
    said = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    z = sample(backbone.denoiser(backbone.condition(said)), from_noise(noise_like([1, 2], (2, 8, 8)), steps), steps)
    assert z[0].mean() > 0.5 > -0.5 > z[1].mean()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bfloat16_is_the_same_loss_in_fewer_digits(tmp_path: Path, prediction: Prediction) -> None:
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        train(tmp_path / precision, 2, prediction=prediction, runtime=CPU.at(precision))
    whole, half = (pd.read_parquet(tmp_path / name / "history.parquet")["loss"] for name in ("fp32", "bf16"))
    assert (whole != half).all()
    np.testing.assert_allclose(half, whole, rtol=0.05)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(InputError, match="the loss is nan at step 1"):
        fit(
            net, lambda model, step, part: model(torch.full((1, 1), math.nan)).sum(),
            Training(steps=2, batch_size=1), folder=tmp_path, key="k", name="test", runtime=CPU,
        )  # fmt: skip


SMALL: dict[str, Any] = {"contents": "discs", "runtime": CPU, "width": 8, "levels": 2, "batch_size": 2, "steps": 12,
                         "checkpoint_every": 10}  # fmt: skip


def test_the_codec_learns_is_saved_as_a_diffusers_folder_and_found_again(tmp_path: Path) -> None:
    images, store, seen = Discs(32, 16), Store(tmp_path), list[int]()
    watched = replace(CPU, progress=lambda *step: seen.append(step[1]))
    options: dict[str, Any] = {"contents": "32 discs", "width": 16, "levels": 2, "batch_size": 8, "learning_rate": 5e-3,
                               "steps": 60, "store": store}  # fmt: skip
    codec = train_codec(images, runtime=CPU, **options)
    x = torch.stack([images[i]["image"] for i in range(8)])
    z = codec.latents(codec.moments(x))
    assert z.shape == (8, 4, 8, 8)
    assert 0.5 < float(z.std()) < 2
    assert (codec.decode(z) - x).abs().mean() < 0.5 * (x - x.mean((2, 3), keepdim=True)).abs().mean()
    again = train_codec(images, runtime=watched, **options)
    assert (again.digest, seen) == (codec.digest, [])
    (folder,) = store.folders("codec")
    assert load_codec(folder, "cpu").digest == codec.digest


def test_a_killed_codec_training_continues_to_the_same_weights(tmp_path: Path) -> None:
    def cut(at: int) -> Runtime:
        def progress(stage: str, done: int, total: int) -> None:
            seen.append(done)
            if done == at:
                raise KeyboardInterrupt

        return replace(CPU, progress=progress)

    seen: list[int] = []
    whole = train_codec(Discs(4, 8), store=Store(tmp_path / "whole"), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        train_codec(Discs(4, 8), store=Store(tmp_path / "killed"), **SMALL | {"runtime": cut(11)})
    again = train_codec(Discs(4, 8), store=Store(tmp_path / "killed"), **SMALL | {"runtime": cut(99)})
    assert again.digest == whole.digest
    assert seen == [*range(1, 12), 11, 12]


@pytest.mark.parametrize("tuned", [False, True])
def test_a_codec_training_reads_the_images_of_each_step_once_in_a_thread_of_its_own(
    tmp_path: Path, tuned: bool
) -> None:
    class Watched(Discs):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if threading.current_thread() is not threading.main_thread():
                read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    images, store, batch = Watched(5, 8), Store(tmp_path), 2
    few = SMALL | {"steps": 4, "batch_size": batch}
    train_codec(images, store=store, **few)
    if tuned:
        (folder,) = store.folders("codec")
        read.clear()
        finetune_codec(folder, images, contents="discs", runtime=CPU, store=store,
                       training=Training(steps=4, batch_size=batch, gradient_accumulation_steps=2))  # fmt: skip
    key = "vae" if tuned else "codec"
    assert read == [int(i) for step in range(4) for i in batch_indices(5, batch, step, CPU.seed, key)]


def test_the_codec_of_other_images_is_not_taken_though_there_are_as_many(tmp_path: Path) -> None:
    """Two hospitals with equally many images and one store."""
    store = Store(tmp_path)
    one = train_codec(Discs(4, 8), store=store, **SMALL)
    other = train_codec(Discs(4, 8, seed=9), store=store, **SMALL | {"contents": "other discs"})
    assert one.digest != other.digest
    assert len(store.folders("codec")) == 2


@pytest.mark.parametrize("change", [{"steps": 3}, {"width": 16}, {"kl_weight": 0.1}, {"learning_rate": 1e-2},
                                    {"runtime": replace(CPU, seed=1)}, {"runtime": CPU.at("bf16")}])  # fmt: skip
def test_what_decides_a_codec_names_it(tmp_path: Path, change: dict[str, Any]) -> None:
    store = Store(tmp_path)
    few = SMALL | {"steps": 2}
    one, other = (train_codec(Discs(4, 8), store=store, **few | more) for more in ({}, change))
    assert one.digest != other.digest
    assert len(store.folders("codec")) == 2


def test_a_damaged_codec_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = SMALL | {"steps": 2}
    codec = train_codec(Discs(4, 8), store=Store(tmp_path), **few)
    (folder,) = Store(tmp_path).folders("codec")
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    assert train_codec(Discs(4, 8), store=Store(tmp_path), **few).digest == codec.digest
    assert f"{weights.name} is damaged" in caplog.text


def test_every_training_here_is_made_on_the_device_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch knows the CPU by a second name, which no default would choose."""
    asked: list[tuple[str, str]] = []
    known = Runtime.torch_device

    def recorded(runtime: Runtime, purpose: str) -> torch.device:
        asked.append((purpose, runtime.device))
        return known(runtime, purpose)

    monkeypatch.setattr(Runtime, "torch_device", recorded)
    there, store = replace(CPU, device="cpu:0"), Store(tmp_path / "store")
    codec = train_codec(Discs(4, 8), store=store, **SMALL | {"steps": 2, "runtime": there})
    (folder,) = store.folders("codec")
    tuned = finetune_codec(folder, Discs(4, 8), contents="discs", training=Training(steps=2, batch_size=2),
                           runtime=there, store=store)  # fmt: skip
    train(tmp_path / "denoiser", 2, runtime=there)
    assert asked == [("codec", "cpu:0"), ("codec", "cpu:0"), ("denoiser", "cpu:0")]
    assert codec.device == tuned.device == torch.device("cpu:0")


def test_nothing_here_has_a_device_of_its_own() -> None:
    """No function of this package has a default device."""
    import importlib
    import inspect
    import pkgutil

    import medlt.diffusion

    for module in pkgutil.iter_modules(medlt.diffusion.__path__, "medlt.diffusion."):
        for name, found in inspect.getmembers(importlib.import_module(module.name)):
            if not callable(found) or not str(getattr(found, "__module__", "")).startswith("medlt"):
                continue
            try:
                parameters = inspect.signature(found).parameters
            except (TypeError, ValueError):
                continue
            told = {"device", "runtime", "store"} & set(parameters)
            assert all(parameters[one].default is inspect.Parameter.empty for one in told), f"{module.name}.{name}"


def test_the_codec_loss_is_the_l1_of_a_perfect_network_plus_its_divergence() -> None:
    class Posterior:
        mean, std = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)

        def kl(self) -> Tensor:
            return torch.full((2,), 16.0)

    class Told:
        latent_dist = Posterior()

    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def encode(self, x: Tensor) -> Told:
            self.x = x
            return Told()

        def decode(self, z: Tensor) -> Any:
            return type("Out", (), {"sample": self.x + 0.25})

    loss = AutoencoderLoss(Discs(4, 4), batch_size=2, kl_weight=0.1, seed=0)
    value = loss(Reconstruction(Off(), decoder_only=False), loss.batch(0), 0)
    assert float(value) == pytest.approx(0.25 + 0.1 * 16 / 16)
