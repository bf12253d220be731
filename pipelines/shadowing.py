"""The attacks of an audit that train denoisers of their own: a likelihood ratio from shadows, and canaries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.chance import seed_of
from medlt.diffusion.backbone import About, Backbone
from medlt.diffusion.families import FAMILIES, begin
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.train import new_network
from medlt.privacy import ledger
from medlt.privacy.audit import canary, lira, membership
from medlt.types import InputError
from pipelines import attacks, guarding, tuning
from pipelines.door import objective, training
from pipelines.subject import Subject


def _trained(subject: Subject, data: LabelledLatents, name: str, seed: int, more: float = 1.0) -> Backbone:
    """A denoiser as the run's, privately if that was, of these rows. Raises InputError for Stable Diffusion.

    `more`: times as many patients as the run's; the batch grows with them, lest a patient be drawn more rarely.
    """
    run, chosen = subject.run, subject.run.config.denoiser
    if isinstance(chosen, configs.StableConfig):
        raise InputError("shadows and canaries train the run's denoiser anew; that is built for kind unet, transformer")
    net = new_network(FAMILIES[chosen.kind], data, seed, chosen.model_dump(exclude=attacks.OWN))
    if chosen.start is not None:
        begin(net, chosen.start)
    place = run.path("stages", "audit", f"{name} of {len(data.uids)}")
    larger = replace(training(chosen), batch=max(1, int(chosen.batch * more)))
    return train_backbone(
        net.backbone(), data, folder=place, training=larger, objective=objective(chosen), seed=seed,
        device=run.config.device, name=name, progress=subject.progress,
        private=guarding.alike(run, subject.real, subject.progress),
    )  # fmt: skip


def likelihood(subject: Subject) -> membership.Membership:
    """LiRA: the run's score of each image against scores of shadows trained with and without its patient."""
    data, member = subject.rows
    target = attacks.scores(subject, subject.backbone, data).numpy()

    def shadow(inside: np.ndarray, seed: int) -> np.ndarray:
        rows = tuning.taken(data, np.flatnonzero(inside))
        return attacks.scores(subject, _trained(subject, rows, f"shadow {seed:x}", seed), data).numpy()

    count, seed = subject.asked.shadows, seed_of(subject.asked.seed, "audit", "shadows")
    found = lira.attack(target, shadow, data.patients, models=count, seed=seed)
    return membership.membership(found, member, data.patients, seed=seed, name=f"Likelihood ratio, {count} shadows")


def canaries(subject: Subject) -> canary.CanaryTest:
    """One more training, with made-up patients put in by coin flips: what it gives away bounds epsilon from below."""
    data, member = subject.rows
    real = tuning.taken(data, np.flatnonzero(member))
    first, seed = data.latents(data.uids[:1]), seed_of(subject.asked.seed, "audit", "canaries")
    planted = canary.canaries(subject.asked.canaries, tuple(first.shape[1:]), seed, real.labels.shape[1])
    rows = _planted(planted, real)

    def train(included: np.ndarray) -> np.ndarray:
        inside = tuning.taken(rows, np.flatnonzero(included))
        more = 1 + len(inside.uids) / len(set(real.patients))
        learnt = _trained(subject, tuning.joined([real, inside]), f"canaries {seed:x}", seed, more)
        return attacks.scores(subject, learnt, rows).numpy()

    spent = _spent(subject.run.path(ledger.NAME))
    chosen = subject.run.config.privacy
    return canary.canary_test(train, planted.included, delta=chosen.delta if chosen else 0.0, ledger=spent)


def _spent(path: Path) -> float | None:
    return ledger.read(path).spent.epsilon if path.is_file() else None


def _planted(given: canary.Canaries, real: LabelledLatents) -> LabelledLatents:
    """Canaries as rows of data, each a patient of its own."""
    uids = [f"canary-{i}" for i in range(len(given.latents))]
    at = {uid: i for i, uid in enumerate(uids)}

    def latents(wanted: Any) -> Tensor:
        return given.latents[torch.tensor([at[uid] for uid in wanted], dtype=torch.int64)]

    about: list[About] = [{} for _ in uids] if real.about else []
    return replace(real, latents=latents, uids=uids, labels=given.labels.numpy(), about=about, patients=uids)
