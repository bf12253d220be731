"""What the parts of a privacy audit share, and the parts that need the denoiser: membership and canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.diffusion.backbone import About, Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.privacy import accounting, ledger
from medlt.privacy.audit import canary, embedding, lira, membership
from medlt.privacy.audit.viewed import View, best_view, chosen_views, lowest_loss, sample_rows
from medlt.privacy.dpsgd.canaries import GradientCanaries, read_scores
from medlt.recipes._checks import objective, training
from medlt.recipes._cohort import Cohort
from medlt.recipes._denoiser import fresh_network, joined, labelled_latents, taken
from medlt.recipes._privacy import PrivateTraining
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator, seed_of
from medlt.training.runtime import Runtime
from medlt.types import InputError

OTHERS = ("val", "test")
MOST_CANARIES, WEIGHTS_EACH = 20_000, 100  # in gradients: they cost no image, and more of them show a larger epsilon
GUESSED = 0.1  # share of the canaries in gradients; of sampled Gaussians, it gives the best bounds from thousands


@dataclass(frozen=True)
class AuditOptions:
    """Options of an audit: optional parts, false-positive rate, pictures, seed, training steps, planted copies.

    encoder: folder of a public vision model, in whose features the copy search also compares images.
    """

    shadow_models: int = 0
    canaries: int = 0
    fpr: float = 0.01
    show_pairs: bool = False
    seed: int = 0
    embedding_steps: int = 250
    planted: int = 100
    encoder: Path | None = None


@dataclass(frozen=True)
class AuditTarget:
    """A finished run under audit: members are its train rows, the others its validation and test rows."""

    run: RunFolder[configs.RunConfig]
    cohort: Cohort
    made: Manifest
    latents: Latents
    backbone: Backbone
    embed: embedding.Embedding
    options: AuditOptions

    @property
    def held_out(self) -> Manifest:
        """Real rows of patients that the run was not trained on."""
        return self.cohort.manifest.where(self.cohort.manifest.rows["split"].isin(OTHERS))

    def pixels(self, part: Manifest, size: int | None = None) -> Tensor:
        """Return real images uint8 [N,1,S,S], by default of the run's size."""
        return self.cohort.images(part, size or self.run.config.size)

    def runtime(self, *key: object) -> Runtime:
        """Return a runtime of the audit, seeded by the key."""
        return replace(self.run.runtime.at("fp32"), seed=self.seed(*key))

    def seed(self, *key: object) -> int:
        """Return the seed of one part of the audit."""
        return seed_of(self.options.seed, "audit", *key)

    def rows(self) -> tuple[LabelledLatents, np.ndarray]:
        """Return the latents and labels of all real rows, members first, and which rows are members, bool [N]."""
        splits = [self.cohort.manifest.split(name) for name in ("train", *OTHERS)]
        filled = [part for part in splits if len(part.rows)]
        parts = [labelled_latents(self.cohort, self.latents, part, self.backbone.space) for part in filled]
        member = np.repeat([part.rows["split"].iloc[0] == "train" for part in filled], [len(p.uids) for p in parts])
        return joined(parts), member


def scores(
    target: AuditTarget, backbone: Backbone, data: LabelledLatents, views: Sequence[View] = (View(),)
) -> Tensor:  # fmt: skip
    """Return the membership score of each row, float64 [N], of the best view; a higher score suggests a member."""
    condition = _condition(backbone, data)
    losses = [
        membership.loss_scores(backbone, _latents(target, data, view), condition, seed=target.seed("membership"))
        for view in views
    ]
    return torch.from_numpy(membership.calibrated(best_view(losses)))


def _condition(backbone: Backbone, data: LabelledLatents) -> Tensor:
    """Return the condition of each row."""
    return backbone.condition(torch.from_numpy(data.labels.astype("float32")), data.about)


def _latents(target: AuditTarget, data: LabelledLatents, view: View) -> Tensor:
    """Return the latents of a view of these rows, [N,C,h,w], in the space of the target's denoiser."""
    if view == View():
        return data.latents(data.uids)
    latents, size = target.latents, target.run.config.size
    parts = []
    for start in range(0, len(data.uids), 64):
        uids = [str(uid) for uid in data.uids[start : start + 64]]
        pixels = target.cohort.images(target.cohort.manifest, size, uids).float() / 255
        z = latents.codec.latents(latents.codec.moments(view(pixels)))
        parts.append(latents.standardiser.to(z) if target.backbone.space == "standardised" else z)
    return torch.cat(parts)


def _views(target: AuditTarget, data: LabelledLatents) -> list[View]:
    """Return the views for the target's denoiser; for a Stable Diffusion, whose passes are slow, three fixed ones."""
    if isinstance(target.run.config.denoiser, configs.StableConfig):
        return [View(), View(mirrored=True), View(inverted=True)]
    some = taken(data, sample_rows(len(data.uids), numpy_generator(target.seed("membership views"))))
    condition, seed = _condition(target.backbone, some), target.seed("membership")

    def loss(view: View) -> float:
        latents = _latents(target, some, view)
        scores = membership.loss_scores(target.backbone, latents, condition, seed=seed, timesteps=(200,), noises=1)
        return lowest_loss(-scores[:, 0])

    return chosen_views(loss)


def membership_by_loss(target: AuditTarget) -> membership.Membership:
    """Measure whether the denoiser's loss of an image reveals that the image was in the training.

    The control is an untrained denoiser of the same architecture; a difference that it also shows is not a leak. Of
    large collections, random patients are scored.
    """
    _require_trained(target)
    data, member = target.rows()
    rows = membership.some_patients(member, data.patients, numpy_generator(target.seed("membership patients")))
    data, member = taken(data, rows), member[rows]
    views = _views(target, data)
    own = scores(target, target.backbone, data, views).numpy()
    control = None
    if not isinstance(target.run.config.denoiser, configs.StableConfig):
        fresh = fresh_network(target.run.config, data, target.seed("untrained")).eval().backbone()
        control = scores(target, fresh, data, views).numpy()
    seed = target.seed("membership rates")
    return membership.membership(
        own, member, data.patients, seed=seed, control=control, views=tuple(map(str, views))
    )  # fmt: skip


@dataclass(frozen=True)
class CanaryTraining:
    """A training with canaries: its result, its folder, which canaries were `included`, bool [m], and all as `rows`."""

    backbone: Backbone
    folder: Path
    included: np.ndarray
    rows: LabelledLatents
    gradients: GradientCanaries | None


def _require_trained(target: AuditTarget) -> None:
    """Raise InputError if the run trained no denoiser."""
    if target.run.config.denoiser.train == "none":
        raise InputError("the run trained no denoiser, so the losses of its denoiser depend on no patient")


def _trained(
    target: AuditTarget, data: LabelledLatents, name: str, seed: int, more: float = 1.0,
    canaries: GradientCanaries | None = None,
) -> tuple[Backbone, Path]:  # fmt: skip
    """Return a denoiser trained on these rows like the run's, privately if that is private, and the training's folder.

    `more`: the number of patients relative to the run; the batch size grows with it, so that each patient is drawn as
    often. canaries: in the gradients of a private training. A finished training is read. Raises InputError for Stable
    Diffusion.
    """
    run, chosen = target.run, target.run.config.denoiser
    _require_trained(target)
    if isinstance(chosen, configs.StableConfig):
        raise InputError(
            "--shadow-models and --canaries retrain the denoiser, which is possible for kind unet and transformer only"
        )
    net = fresh_network(run.config, data, seed)
    private = None if run.config.privacy is None else PrivateTraining(run, target.cohort, False, canaries)
    grown = 1.0 if private is not None else more  # a private step draws each patient as often, however many there are
    larger = replace(training(chosen), batch_size=max(1, int(chosen.batch_size * grown)))
    place = run.path("stages", "audit", f"{name} of {len(data.uids)} {data.digest()}")
    learnt = train_backbone(
        net.backbone(), data, folder=place, training=larger, objective=objective(chosen),
        runtime=replace(run.runtime.at(chosen.precision), seed=seed), name=name, private=private,
    )  # fmt: skip
    return learnt, place


def likelihood_ratio(target: AuditTarget) -> membership.Membership:
    """Run LiRA: compare the run's score of each image with those of shadow models with and without its patient."""
    data, member = target.rows()
    own = scores(target, target.backbone, data).numpy()

    def shadow(inside: np.ndarray, seed: int) -> np.ndarray:
        rows = taken(data, np.flatnonzero(inside))
        return scores(target, _trained(target, rows, f"shadow {seed:x}", seed)[0], data).numpy()

    count, seed = target.options.shadow_models, target.seed("shadows")
    ratios = lira.attack(own, shadow, data.patients, models=count, seed=seed)
    return membership.membership(
        ratios, member, data.patients, seed=seed, name=f"Likelihood ratio, {count} shadow models"
    )


def _canary_training(target: AuditTarget) -> CanaryTraining:
    """Train once more with randomly inserted made-up patients, and canaries in the gradients of a private run."""
    data, member = target.rows()
    real = taken(data, np.flatnonzero(member))
    first, seed = data.latents(data.uids[:1]), target.seed("canaries")
    planted = canary.canaries(target.options.canaries, tuple(first.shape[1:]), seed, real.labels.shape[1])
    rows = _planted(planted, real)
    inside = taken(rows, np.flatnonzero(planted.included))
    more = 1 + len(inside.uids) / len(set(real.patients))
    weights = sum(weight.numel() for weight in target.backbone.network.parameters())
    count = max(1, min(MOST_CANARIES, weights // WEIGHTS_EACH))
    gradients = None if target.run.config.privacy is None else GradientCanaries.flipped(count, seed)
    learnt, place = _trained(target, joined([real, inside]), f"canaries {seed:x}", seed, more, gradients)
    return CanaryTraining(learnt, place, planted.included, rows, gradients)


def canary_test(target: AuditTarget) -> canary.CanaryTest:
    """Score the canaries of a training by its loss; the scores give a lower bound of epsilon."""
    done = _canary_training(target)
    kept, chosen = target.run.path(ledger.NAME), target.run.config.privacy
    spent = ledger.read_ledger(kept).spent.epsilon if kept.is_file() else None
    return canary.canary_test(
        lambda _: scores(target, done.backbone, done.rows).numpy(), done.included,
        delta=chosen.delta if chosen else 0.0, ledger=spent,
    )  # fmt: skip


def gradient_canary_test(target: AuditTarget) -> canary.CanaryTest:
    """Score the canaries in the gradients of the same training, against what the ledger has for the denoiser alone."""
    done, chosen = _canary_training(target), target.run.config.privacy
    assert done.gradients is not None
    assert chosen is not None
    known = ledger.read_ledger(target.run.path(ledger.NAME))
    cost = accounting.spent([one.cost for one in known.of("denoiser")], chosen.delta).epsilon
    values = read_scores(done.folder, done.gradients)
    return canary.canary_test(
        lambda _: values, done.gradients.included, delta=chosen.delta, share=GUESSED, ledger=cost,
        kind="canaries in gradients",
    )  # fmt: skip


def _planted(given: canary.Canaries, real: LabelledLatents) -> LabelledLatents:
    """Return canaries as rows of data, each a patient of its own."""
    uids = [f"canary-{i}" for i in range(len(given.latents))]
    at = {uid: i for i, uid in enumerate(uids)}

    def latents(wanted: Any) -> Tensor:
        return given.latents[torch.tensor([at[uid] for uid in wanted], dtype=torch.int64)]

    about: list[About] = [{} for _ in uids] if real.about else []
    return replace(
        real, latents=latents, uids=uids, labels=given.labels.numpy(), about=about, patients=uids, contents="canaries"
    )
