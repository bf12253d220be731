"""Everything that is trained on patients, by the real private loop: it learns, and what is kept is what it is.

Losses a row are those of the ordinary training: their mean is its loss, and none sees another row.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medlt.classify.networks import NETWORKS
from medlt.classify.private import load_private, losses, private_classifier
from medlt.classify.private import row_loss as classifier_loss
from medlt.classify.sets import TrainingSet
from medlt.diffusion.adapt import FULL, LoraFinetuning
from medlt.diffusion.autoencoder import AutoencoderLoss, Reconstruction, autoencoder
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.codec import load_codec
from medlt.diffusion.emphasis import gradient_error, gradient_errors
from medlt.diffusion.finetune import LabelledLatents, Objective, row_loss, train_backbone
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.losses import NoisedLoss
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.untrained import untrained
from medlt.diffusion.train_codec import train_codec
from medlt.diffusion.vae import ReconstructionLoss, finetune_codec
from medlt.privacy.dpsgd.preflight import assert_reads_back, prepare
from medlt.privacy.dpsgd.training import PrivacySettings, fit_private
from medlt.privacy.ledger import Mechanism, read_mechanism
from medlt.rng import batch_indices, noise_like, torch_generator
from medlt.sparse import code_metrics, collapse
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import iterate
from medlt.sparse.phases import TrainingSetup
from medlt.sparse.private import imitation_loss, interaction_loss, masked_bces, private_steps
from medlt.store import Store
from medlt.testing import Discs, tiny_autoencoder_kl, tiny_autoencoder_tiny
from medlt.training.protocols import RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, Training
from medlt.types import GradSampleMode, InputError

N = 12
UIDS = [f"u{i}" for i in range(N)]
PATIENTS = [f"p{i // 2}" for i in range(N)]
LABELS = np.stack([np.arange(N) % 2, np.where(np.arange(N) % 3, 1.0, np.nan)], 1).astype(np.float32)
CPU = Runtime("cpu", "fp32", None, 0)
QUIET = PrivacySettings(
    0.5, math.inf, 1e-5, N // 2, noise_multiplicity=2, grad_sample_mode=GradSampleMode.BOOKKEEPING, secure_mode=False
)
TRAINING = Training(steps=3, learning_rate=1e-2, batch_size=3, warmup_steps=0, ema_decay=0.0, checkpoint_every=2)


def latents(uids: Sequence[str]) -> Tensor:
    return noise_like([int(uid[1:]) for uid in uids], (4, 8, 8))


DATA = LabelledLatents(latents, UIDS, LABELS, "normal noise by uid", [{"age": 40 + i} for i in range(N)], PATIENTS)


class Asked:
    """A PrivateFit: the real training, what each call gave back, and what the ledger was told."""

    def __init__(self, private: PrivacySettings = QUIET) -> None:
        self.private, self.trained, self.told = private, list[Mechanism](), list[Mechanism]()

    @property
    def digest(self) -> str:
        return self.private.digest

    def __call__(self, network: nn.Module, loss: RowLoss, units: Sequence[str], **more: Any) -> None:
        self.trained.append(fit_private(network, loss, units, private=self.private, data="tests", **more))

    def account(self, mechanism: Path) -> None:
        self.told.append(read_mechanism(mechanism))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(
        tmp_path_factory.mktemp("sd") / "model", version="1.5", widths=(32, 32), layers=1, text_width=32, text_layers=1
    )


def small() -> Backbone:
    torch.manual_seed(0)
    return LabelUNet(4, 2, width=16).backbone()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], after: nn.Module) -> set[str]:
    return {name for name, value in after.state_dict().items() if not torch.equal(before[name], value)}


def by_rows(loss: RowLoss, network: nn.Module, rows: Sequence[int], *key: object) -> Tensor:
    with torch.no_grad():
        return loss(network, np.array(rows), torch_generator("rows", *key))


def see_no_other_row(loss: RowLoss, network: nn.Module) -> None:
    """The loss of the second of three rows, whatever the others are."""
    network.train()
    first, second = by_rows(loss, network, [0, 4, 2]), by_rows(loss, network, [7, 4, 4])
    assert first.shape == second.shape == (3,)
    torch.testing.assert_close(first[1], second[1])
    assert not torch.isclose(second[1], second[2])  # the same row, other chance
    assert not torch.isclose(first[0], second[0])


# --- losses a row ------------------------------------------------------------


def test_the_mean_of_rows_losses_is_the_denoisers_loss_to_the_bit() -> None:
    backbone, rows = small(), np.array([3, 1, 8])
    objective = Objective(condition_dropout=0.5, offset_noise=0.1)
    x0, known = DATA.rows(rows)
    told = backbone.condition(torch.from_numpy(LABELS[rows]))
    plain = NoisedLoss(backbone.prediction, backbone.condition.null, backbone.noise, 0.1, 0.0, 5.0)
    whole = plain(backbone.network, x0, told, 0.5, torch_generator("rows"), known)
    each = row_loss(backbone, DATA, objective)
    assert torch.equal(by_rows(each, backbone.network, [3, 1, 8]).mean(), whole.detach())
    see_no_other_row(row_loss(backbone, DATA, Objective(condition_dropout=0.0)), backbone.network)


def test_the_loss_of_a_row_with_attributes_sees_no_other_row() -> None:
    """An age is hidden by the draws of its own row, and the loss depends on it as it does on a label."""
    torch.manual_seed(0)
    backbone = LabelUNet(4, 2, width=16, attributes=("age",)).backbone()
    for hidden in (0.0, 0.5, 1.0):
        objective = Objective(condition_dropout=0.0, attribute_dropout=hidden)
        see_no_other_row(row_loss(backbone, DATA, objective), backbone.network)
    older, losses = replace(DATA, about=[{"age": 90}] * N), []
    for hidden, data in itertools.product((0.0, 1.0), (DATA, older)):
        loss = row_loss(backbone, data, Objective(condition_dropout=0.0, attribute_dropout=hidden))
        losses.append(by_rows(loss, backbone.network, [1, 5]))
    assert not torch.equal(losses[0], losses[1])
    assert torch.equal(losses[2], losses[3])


@pytest.mark.parametrize("mode", [GradSampleMode.HOOKS, GradSampleMode.FUNCTORCH, GradSampleMode.BOOKKEEPING])
def test_a_network_with_dropout_and_attributes_is_trained_privately(mode: GradSampleMode, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = LabelUNet(4, 2, width=16, dropout=0.2, attributes=("view", "sex", "age"), rescale_betas_zero_snr=True)
    before = weights(net)
    private = Asked(replace(QUIET, grad_sample_mode=mode))
    train_backbone(net.backbone(), DATA, folder=tmp_path, training=TRAINING, runtime=CPU, private=private)
    assert "label.embed.0.weight" in moved(before, net)
    assert all(weight.isfinite().all() for weight in net.parameters())


def test_the_mean_of_rows_losses_is_the_autoencoders_loss() -> None:
    images, network = Discs(N, 16), Reconstruction(autoencoder(2, 8, 2), decoder_only=False)
    loss = AutoencoderLoss(images, 4, 0.1, 0)
    rows = batch_indices(N, 4, 5, 0, "codec")
    each = loss.each(network, rows, torch_generator(0, "codec", 5))
    torch.testing.assert_close(each.mean(), loss(network, loss.batch(5), 5))
    see_no_other_row(loss.each, network)


@pytest.mark.parametrize("make", [tiny_autoencoder_kl, tiny_autoencoder_tiny])
@pytest.mark.parametrize("ssim", [0.0, 0.5])
def test_the_mean_of_rows_losses_is_that_of_a_reconstruction(make: Callable[[], Any], ssim: float) -> None:
    images, network = Discs(N, 16), Reconstruction(make(), decoder_only=False)
    loss = ReconstructionLoss(images, 4, 1.0, ssim, 0.1, 0)
    rows = batch_indices(N, 4, 5, 0, "vae")
    each = loss.each(network, rows, torch_generator(0, "vae", 5))
    torch.testing.assert_close(each.mean(), loss(network, loss.batch(5), 5, WHOLE))
    if make is tiny_autoencoder_kl:
        see_no_other_row(loss.each, network)


def test_gradient_errors_are_those_of_each_image() -> None:
    out, x = (noise_like([i, i + 1, i + 2], (1, 16, 16)) for i in (0, 10))
    alone = torch.stack([gradient_error(out[[i]], x[[i]]) for i in range(3)])
    torch.testing.assert_close(gradient_errors(out, x), alone)


def test_rows_losses_of_a_simplicial_code_see_no_other_row() -> None:
    z = noise_like(range(N), (2, 8, 8))
    lesson = TrainingSetup(z, torch.from_numpy(LABELS), 4, 1e-3, 0.0, 1.0, CPU)
    coder, teacher = (SimplicialCoder(2, 2, groups=2, vocabulary=4, width=8, norm="group", seed=i) for i in (0, 1))
    see_no_other_row(interaction_loss(lesson), coder)
    see_no_other_row(imitation_loss(lesson, teacher), coder)
    unlike = SimplicialCoder(2, 2, groups=2, vocabulary=4, width=8)
    with pytest.raises(AssertionError):
        see_no_other_row(interaction_loss(lesson), unlike)


def test_unknown_labels_weigh_nothing() -> None:
    logits, none = torch.tensor([[2.0, -1.0], [2.0, -1.0]], requires_grad=True), math.nan
    labels = torch.tensor([[1.0, none], [none, none]])
    expected = torch.tensor([math.log1p(math.exp(-2.0)), 0.0])
    for found in (losses(logits, labels, "multi-label"), masked_bces(logits, labels)):
        torch.testing.assert_close(found.detach(), expected)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
        assert gradient[0, 1] == 0
    single = losses(logits, torch.tensor([[1.0, 0.0], [none, 0.0]]), "single-label")
    torch.testing.assert_close(single.detach(), torch.tensor([math.log1p(math.exp(-3.0)), 0.0]))


@pytest.mark.parametrize("augment", ["none", "light"])
def test_rows_losses_of_a_classifier_see_no_other_row(augment: str) -> None:
    network = NETWORKS["small"](2)
    prepare(network)
    loss = classifier_loss(radiographs().images, LABELS, augment)
    if augment == "light":
        see_no_other_row(loss, network)
    else:
        network.eval()
        alone = torch.cat([by_rows(loss, network, [row]) for row in range(4)])
        torch.testing.assert_close(by_rows(loss, network, range(4)), alone, rtol=1e-4, atol=1e-5)


# --- the denoiser ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (None, FULL),
        ("frozen", LoraFinetuning(rank=2)),
        ("trained", LoraFinetuning(rank=2, conv=True)),
        ("trained", FULL),
    ],
)
def test_a_denoiser_is_trained_privately(text: Any, how: Any, folder: Path, tmp_path: Path, asked: Asked) -> None:
    def fresh() -> Backbone:
        return small() if text is None else load_stable_diffusion(folder).backbone(Prompts(("Mass", "Edema")), text)

    train = partial(
        train_backbone, data=DATA, folder=tmp_path, training=TRAINING, finetuning=how, validation=DATA, runtime=CPU
    )
    first = train(fresh(), private=asked)
    again = train(fresh(), private=asked)
    assert first.digest == again.digest != fresh().digest
    assert_reads_back(again.network, weights(first.network))
    one, other = asked.trained
    assert read_mechanism(tmp_path / "mechanism.json") == one
    assert (one.steps, one.units, one.privacy_unit, one.stage, one.weights) == (
        3,
        N // 2,
        "patient",
        "denoiser",
        other.weights,
    )
    trained = {name for name in weights(first.network) if isinstance(how, LoraFinetuning) is ("lora_" in name)}
    start = weights(fresh().network) if how is FULL else {}
    assert not start or moved(start, first.network) == trained
    assert all(bool(first.network.state_dict()[name].any()) for name in trained if "lora_B" in name)


class Further:
    digest = "further"

    def __call__(self, noised: Any, draw: torch.Generator) -> Tensor:
        return noised.out.mean()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"extra_losses": [Further()]}, "extra losses"),
        ({"objective": Objective(balance="inverse_sqrt")}, "balance changes how often"),
        ({"data": replace(DATA, patients=())}, "give the patient of each row"),
    ],
)
def test_what_is_no_rows_own_is_refused(more: dict[str, Any], match: str, tmp_path: Path, asked: Asked) -> None:
    told = {"data": DATA, "folder": tmp_path, "training": TRAINING, "private": asked, "runtime": CPU} | more
    with pytest.raises(InputError, match=match):
        train_backbone(small(), **told)
    assert not asked.trained
    assert not list(tmp_path.iterdir())


# --- codecs ------------------------------------------------------------------


def test_a_codec_is_trained_privately_and_measures_no_scale(tmp_path: Path, asked: Asked) -> None:
    told: dict[str, Any] = {"contents": "discs", "runtime": CPU, "store": Store(tmp_path), "width": 8, "levels": 2,
                            "steps": 3, "batch_size": 3, "ema_decay": 0.0}  # fmt: skip
    train = partial(train_codec, Discs(N, 16), **told)
    codec = train(private=asked, patients=PATIENTS)
    assert codec.network.config.scaling_factor == 1.0
    assert train(private=asked, patients=PATIENTS).digest == codec.digest
    assert (len(asked.trained), len(asked.told)) == (1, 2)  # the second was found, and accounted for all the same
    assert asked.told == [asked.trained[0]] * 2
    plain = train()
    assert plain.digest != codec.digest
    assert plain.network.config.scaling_factor != 1.0
    with pytest.raises(InputError, match="3 patients for 12 images"):
        train(private=asked, patients=PATIENTS[:3])


def test_another_mechanism_or_other_patients_make_another_codec(tmp_path: Path, asked: Asked) -> None:
    train = partial(train_codec, Discs(N, 16), contents="discs", runtime=CPU, store=Store(tmp_path), width=8, levels=2,
                    steps=2, batch_size=3)  # fmt: skip
    train(private=asked, patients=PATIENTS)
    louder = Asked(replace(QUIET, noise_multiplier=2.0))
    train(private=louder, patients=PATIENTS)
    train(private=asked, patients=[f"q{i // 3}" for i in range(N)])
    assert [one.noise_multiplier for one in louder.told] == [2.0]
    assert len(asked.trained) == len(asked.told) == 2
    assert {one.units for one in asked.told} == {N // 2}  # the public number, whoever there is
    assert len(Store(tmp_path).folders("codec")) == 3


@pytest.mark.parametrize("make", [tiny_autoencoder_kl, tiny_autoencoder_tiny])
@pytest.mark.parametrize("validation", [None, Discs(3, 16, seed=9)])
def test_a_codec_is_tuned_privately(make: Callable[[], Any], validation: Any, tmp_path: Path, asked: Asked) -> None:
    make().save_pretrained(tmp_path / "source")
    tune = partial(finetune_codec, tmp_path / "source", Discs(N, 16), contents="discs", training=TRAINING, runtime=CPU,
                   store=Store(tmp_path / "run"))  # fmt: skip
    codec = tune(private=asked, patients=PATIENTS, validation=validation)
    assert codec.digest != load_codec(tmp_path / "source", "cpu").digest
    assert tune(private=asked, patients=PATIENTS, validation=validation).digest == codec.digest
    assert (len(asked.trained), len(asked.told)) == (1, 2)
    changed = moved(weights(load_codec(tmp_path / "source", "cpu").network), codec.network)
    assert changed
    assert all(name.startswith(("decoder", "post_quant")) for name in changed)
    (told,) = (tmp_path / "run").glob("codec/*/training.json")
    assert ("after" in json.loads(told.read_text())) is (validation is not None)


# --- sparse ------------------------------------------------------------------

CODE: dict[str, Any] = {"groups": 2, "vocabulary": 4, "width": 8, "generations": 2, "imitation_epochs": 2,
                        "adaptation_epochs": 1, "interaction_epochs": 2, "batch_size": 3}  # fmt: skip


def test_a_simplicial_code_is_learnt_privately_phase_by_phase(tmp_path: Path, asked: Asked) -> None:
    z = noise_like(range(N + 4), (2, 8, 8))
    learn = partial(iterate, z[:N], LABELS, z[N:], LABELS[:4], contents="a", val_contents="b", runtime=CPU,
                    store=Store(tmp_path), **CODE)  # fmt: skip
    found = learn(private=asked, patients=PATIENTS, units=N // 2)
    planned = private_steps(N // 2, 3, 2, 2, 1, 2)
    assert {one.stage: one.steps for one in asked.told} == planned
    assert found.coder.config["norm"] == "group"
    assert found.metrics["probe_ap"].isna().all()
    assert found.metrics["agreement"].isna().tolist() == [True, False]
    again = learn(private=asked, patients=PATIENTS, units=N // 2)
    assert again.coder.digest == found.coder.digest
    assert len(asked.trained) == len(planned) == len(asked.told) // 2
    assert learn().coder.digest != found.coder.digest
    with pytest.raises(InputError, match="3 patients for 12 latents"):
        learn(private=asked, patients=PATIENTS[:3], units=N // 2)
    with pytest.raises(InputError, match="give units, the public number of patients"):
        learn(private=asked, patients=PATIENTS)


@pytest.mark.parametrize("dead", [{1}, {0}, {0, 1}])
def test_a_private_code_is_chosen_without_reading_a_row(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, dead: set[int]
) -> None:
    """The newest generation with living tokens on noise; no retry, and no generation after it imitates a dead one."""
    monkeypatch.setattr(collapse, "problem", None)
    monkeypatch.setattr(collapse, "healthiest", None)
    seen = list[int]()

    def tokens(coder: SimplicialCoder, shape: Any, *key: object) -> float:
        seen.append(len(seen))
        return 1.0 if seen[-1] in dead else 2.0

    monkeypatch.setattr(code_metrics, "tokens_on_noise", tokens)
    z = noise_like(range(N + 4), (2, 8, 8))
    learn = partial(iterate, z[:N], LABELS, z[N:], LABELS[:4], contents="a", val_contents="b", runtime=CPU,
                    store=Store(tmp_path), private=asked, patients=PATIENTS, units=N // 2, **CODE)  # fmt: skip
    if dead == {0, 1}:
        with pytest.raises(InputError, match=r"collapsed in every generation.*raise privacy\.epsilon"):
            learn()
        return
    found = learn()
    assert found.chosen["generation"] == 1 - max(dead)
    assert found.metrics["retry"].tolist() == [0, 0]
    stages = [one.stage for one in asked.told]
    taught = ["sparse imitation 1", "sparse adaptation 1"] if dead == {1} else []
    assert stages == ["sparse interaction 0", *taught, "sparse interaction 1"]


def test_planned_steps_count_units_not_rows() -> None:
    assert private_steps(100, 16, 2, 8, 1, 6) == {
        "sparse interaction 0": 36, "sparse imitation 1": 48, "sparse adaptation 1": 6, "sparse interaction 1": 36,
    }  # fmt: skip
    assert list(private_steps(5, 16, 1).values()) == [36]


def test_the_ordinary_coder_is_what_it_was() -> None:
    assert "norm" not in SimplicialCoder(2, 2, groups=2, vocabulary=4, width=8).config


# --- classifiers -------------------------------------------------------------


def radiographs(**more: Any) -> TrainingSet:
    images = torch.stack([Discs(N, 64)[i]["image"] for i in range(N)]).mul(255).to(torch.uint8)
    return TrainingSet(images, more.get("labels", LABELS), more.get("weights", np.ones(N, np.float32)), tuple(UIDS))


@pytest.mark.parametrize("name", ["small", "dense"])
def test_a_classifier_is_trained_privately_and_read_back(name: str, tmp_path: Path, asked: Asked) -> None:
    real = radiographs()
    train = partial(
        private_classifier,
        real,
        PATIENTS,
        prepare=prepare,
        network=name,
        steps=3,
        batch_size=3,
        ema_decay=0.0,
        runtime=CPU,
        store=Store(tmp_path),
    )
    first = train(private=asked)
    again = train(private=asked)
    assert_reads_back(again.net, weights(first.net))
    (place,) = Store(tmp_path).folders("classifier")
    assert torch.equal(load_private(place, prepare, "cpu").predict(real.images), first.predict(real.images))
    assert ("Batch norms became" in " ".join(asked.told[0].changes)) is (name == "small")
    assert not any(isinstance(part, nn.BatchNorm2d) for part in first.net.modules())
    assert "positive" not in first.record
    assert first.task == "multi-label"
    assert (len(asked.trained), len(asked.told)) == (1, 2)
    next(place.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="damaged"):
        load_private(place, prepare, "cpu")


@pytest.mark.parametrize(
    ("more", "settings", "match"),
    [
        ({}, {"task": "single-label"}, "exactly one positive"),
        ({"weights": np.full(N, 2.0, np.float32)}, {}, "rows have weights"),
        ({}, {"network": "vast"}, "no classifier network"),
        ({}, {"augment": "flip"}, "no augmentation"),
    ],
)
def test_sets_that_do_not_fit_are_refused(
    more: dict[str, Any], settings: dict[str, Any], match: str, tmp_path: Path, asked: Asked
) -> None:
    with pytest.raises(InputError, match=match):
        private_classifier(radiographs(**more), PATIENTS, runtime=CPU, store=Store(tmp_path), private=asked,
                           prepare=prepare, **settings)  # fmt: skip
    assert not asked.trained
