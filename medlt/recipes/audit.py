"""The privacy audit of a finished run: what its images and its denoiser reveal about the train patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.convert.encode import png
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.diffusion.backbone import About, Backbone
from medlt.diffusion.cache import Latents
from medlt.diffusion.finetune import LabelledLatents, train_backbone
from medlt.diffusion.sampler import last_steps
from medlt.diffusion.schedulers import factory
from medlt.files import write_bytes, write_json, write_table, write_text
from medlt.privacy import ledger
from medlt.privacy.audit import canary, copies, embedding, lira, membership, plants, reidentify
from medlt.privacy.audit.summary import summary, tables
from medlt.privacy.card import datasheet, model_card
from medlt.recipes._checks import objective, training
from medlt.recipes._codec import decoder, encode, make_codec
from medlt.recipes._cohort import EMBEDDING_SIZE, Cohort, filed_cohort, patients
from medlt.recipes._denoiser import fresh_network, joined, labelled_latents, saved_denoiser, taken
from medlt.recipes._privacy import PrivateTraining
from medlt.recipes._setup import RunFolder, finished, logged
from medlt.report.html import write_report
from medlt.rng import seed_of
from medlt.training.runtime import Runtime, silent
from medlt.types import InputError, Progress

OTHERS = ("val", "test")
SHOWN = 8
STRENGTHS = (0.1, 0.3, 0.5)
"""Strengths of planted copies that pass through the run's own denoiser: shares of its steps."""


@dataclass(frozen=True)
class AuditOptions:
    """Options of an audit: optional parts, the false-positive rate, pictures, seed and training steps."""

    shadow_models: int = 0
    canaries: int = 0
    fpr: float = 0.01
    show_pairs: bool = False
    seed: int = 0
    embedding_steps: int = 250


@dataclass(frozen=True)
class Unknown:
    """A part of an audit that could not run, with the reason."""

    reason: str
    passed: bool | None = None

    @property
    def sentence(self) -> str:
        """The reason, as the report shows it."""
        return f"Cannot conclude: {self.reason}"


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


def main(folder: Path, options: AuditOptions, progress: Progress = silent) -> dict[str, Any]:
    """Audit a run, write audit.json, its tables, the cards and the report, and return the content of audit.json.

    Raises InputError if the run is not finished, has no synthetic image, or has no patient outside the train split.
    """
    with logged(finished(Path(folder), progress)) as run, run.runtime.limited():
        target = _target(run, options)
        wanted: dict[str, Callable[[AuditTarget], Any]] = {
            "near_copies": find_near_copies, "reidentification": reidentify_patients, "membership": membership_by_loss,
        }  # fmt: skip
        wanted |= {"membership, shadow models": likelihood_ratio} if options.shadow_models else {}
        wanted |= {"canaries": canary_test} if options.canaries else {}
        parts = {name: _tried(part, target) for name, part in wanted.items()}
    results = summary(parts)
    for name, table in tables(parts).items():
        write_table(run.path(f"{name.replace(', ', '_').replace(' ', '_')}.parquet"), table)
    write_json(run.path("audit.json"), results)
    write_text(run.path("MODEL_CARD.md"), model_card(run.folder))
    write_text(run.path("DATASHEET.md"), datasheet(run.folder))
    write_report(run.folder)
    if options.show_pairs:
        _show_pairs(target, parts["near_copies"])
    return results


def _target(run: RunFolder[configs.RunConfig], options: AuditOptions) -> AuditTarget:
    """Return the audit target: the run with its saved denoiser, and an embedding that compares images.

    The embedding is trained on members and non-members, so that it treats both alike.
    """
    cohort = filed_cohort(run)
    whole = Manifest.read(run.path("manifest.parquet"))
    made = whole.where(whole.rows.get("synthetic", pd.Series(False, whole.rows.index)))
    if made.rows.empty:
        raise InputError(f"{run.folder}: no synthetic image was kept, so there is nothing to audit")
    if not cohort.manifest.rows["split"].isin(OTHERS).any():
        raise InputError(f"{run.folder}: no real image of split val or test; the audit needs patients not trained on")
    private = None if run.config.privacy is None else PrivateTraining(run, cohort, kept=False)
    latents = encode(run, cohort, make_codec(run, cohort, private))
    backbone = saved_denoiser(run, cohort, latents)
    runtime = replace(run.runtime.at("fp32"), seed=seed_of(options.seed, "audit", "embedding"))
    embed = embedding.fit_embedding(
        cohort.images(cohort.manifest, EMBEDDING_SIZE), patients(cohort.manifest), runtime=runtime, store=run.store,
        steps=options.embedding_steps,
    )  # fmt: skip
    return AuditTarget(run, cohort, made, latents, backbone, embed, options)


def _tried(part: Callable[[AuditTarget], Any], target: AuditTarget) -> Any:
    """Return the result of a part, or the reason why it could not run."""
    try:
        return part(target)
    except InputError as error:
        return Unknown(str(error))


def _plants(target: AuditTarget) -> dict[str, plants.Plant]:
    """Return the changes that planted copies undergo, with the run's own codec and denoiser among them."""
    latents, backbone, chosen = target.latents, target.backbone, target.run.config.method
    decode_latents, own = decoder(target.run.runtime, latents.codec), backbone.space == "standardised"

    def encode_images(pixels: Tensor) -> Tensor:
        z = latents.codec.latents(latents.codec.moments(pixels))
        return latents.standardiser.to(z) if own else z

    def decode(z: Tensor) -> Tensor:
        return decode_latents(latents.standardiser.back(z) if own else z)

    changes = {**plants.COMMON, "codec round trip": plants.round_trip(encode_images, decode)}
    if not isinstance(chosen, configs.Sampling | configs.Edit | configs.Fusion | configs.Recompose):
        chosen = configs.FromNoiseConfig()  # a plug-in's method may sample otherwise
    schedule, denoiser = factory(chosen.scheduler, chosen.num_inference_steps, backbone.noise), backbone.denoiser()
    for strength in STRENGTHS:
        steps = last_steps(strength, chosen.num_inference_steps)
        changes[f"denoiser, strength {strength}"] = plants.img2img(encode_images, decode, denoiser, schedule, steps)
    return changes


def find_near_copies(target: AuditTarget) -> copies.CopySearch:
    """Measure whether synthetic images lie nearer to train images than images of other patients do."""
    planted, held_out = _plants(target), target.held_out
    return copies.search_copies(
        target.embed, images(target.made, target.run.config.size), target.pixels(target.cohort.train),
        target.pixels(held_out), planted, uids=list(target.made.rows.index), held_out_patients=patients(held_out),
        seed=target.seed("copies"), rate=target.options.fpr,
        required=[name for name in planted if not name.startswith("denoiser")],
    )  # fmt: skip


def reidentify_patients(target: AuditTarget) -> reidentify.Reidentification:
    """Measure whether synthetic images match train patients more often than other patients."""
    whole, train, held_out = target.cohort.manifest, target.cohort.train, target.held_out
    known = reidentify.verify(target.pixels(whole, EMBEDDING_SIZE), patients(whole), store=target.run.store,
                              runtime=target.runtime("verification"), steps=target.options.embedding_steps)  # fmt: skip
    return reidentify.reidentify(
        target.embed, images(target.made, target.run.config.size), target.pixels(train), target.pixels(held_out), known,
        uids=list(target.made.rows.index), train_patients=patients(train), held_out_patients=patients(held_out),
        seed=target.seed("re-identification"),
    )  # fmt: skip


def scores(target: AuditTarget, backbone: Backbone, data: LabelledLatents) -> Tensor:
    """Return the membership score of each row, float64 [N]; a higher score suggests a row of the training."""
    labels = torch.from_numpy(data.labels.astype("float32"))
    condition = backbone.condition(labels, data.about)
    losses = membership.loss_scores(backbone, data.latents(data.uids), condition, seed=target.seed("membership"))
    return torch.from_numpy(membership.calibrated(losses))


def membership_by_loss(target: AuditTarget) -> membership.Membership:
    """Measure whether the denoiser's loss of an image reveals that the image was in the training.

    The control is an untrained denoiser of the same architecture; a difference that it also shows is not a leak.
    """
    _require_trained(target)
    data, member = target.rows()
    own = scores(target, target.backbone, data).numpy()
    control = None
    if not isinstance(target.run.config.denoiser, configs.StableConfig):
        fresh = fresh_network(target.run.config, data, target.seed("untrained")).eval().backbone()
        control = scores(target, fresh, data).numpy()
    seed = target.seed("membership rates")
    return membership.membership(own, member, data.patients, seed=seed, control=control)


def _require_trained(target: AuditTarget) -> None:
    """Raise InputError if the run trained no denoiser."""
    if target.run.config.denoiser.train == "none":
        raise InputError("the run trained no denoiser, so the losses of its denoiser depend on no patient")


def _trained(target: AuditTarget, data: LabelledLatents, name: str, seed: int, more: float = 1.0) -> Backbone:
    """Train a denoiser on these rows with the run's settings, privately if the run is private.

    `more`: the number of patients relative to the run; the batch size grows with it, so that each patient is drawn as
    often. Raises InputError for Stable Diffusion.
    """
    run, chosen = target.run, target.run.config.denoiser
    _require_trained(target)
    if isinstance(chosen, configs.StableConfig):
        raise InputError(
            "--shadow-models and --canaries retrain the denoiser, which is possible for kind unet and transformer only"
        )
    net = fresh_network(run.config, data, seed)
    private = None if run.config.privacy is None else PrivateTraining(run, target.cohort, kept=False)
    grown = 1.0 if private is not None else more  # a private step draws each patient as often, however many there are
    larger = replace(training(chosen), batch_size=max(1, int(chosen.batch_size * grown)))
    place = run.path("stages", "audit", f"{name} of {len(data.uids)} {data.digest()}")
    return train_backbone(
        net.backbone(), data, folder=place, training=larger, objective=objective(chosen),
        runtime=replace(run.runtime.at(chosen.precision), seed=seed), name=name, private=private,
    )  # fmt: skip


def likelihood_ratio(target: AuditTarget) -> membership.Membership:
    """Run LiRA: compare the run's score of each image with those of shadow models with and without its patient."""
    data, member = target.rows()
    own = scores(target, target.backbone, data).numpy()

    def shadow(inside: np.ndarray, seed: int) -> np.ndarray:
        rows = taken(data, np.flatnonzero(inside))
        return scores(target, _trained(target, rows, f"shadow {seed:x}", seed), data).numpy()

    count, seed = target.options.shadow_models, target.seed("shadows")
    ratios = lira.attack(own, shadow, data.patients, models=count, seed=seed)
    return membership.membership(
        ratios, member, data.patients, seed=seed, name=f"Likelihood ratio, {count} shadow models"
    )


def canary_test(target: AuditTarget) -> canary.CanaryTest:
    """Train once more with randomly inserted made-up patients; their scores give a lower bound of epsilon."""
    data, member = target.rows()
    real = taken(data, np.flatnonzero(member))
    first, seed = data.latents(data.uids[:1]), target.seed("canaries")
    planted = canary.canaries(target.options.canaries, tuple(first.shape[1:]), seed, real.labels.shape[1])
    rows = _planted(planted, real)

    def train(included: np.ndarray) -> np.ndarray:
        inside = taken(rows, np.flatnonzero(included))
        more = 1 + len(inside.uids) / len(set(real.patients))
        learnt = _trained(target, joined([real, inside]), f"canaries {seed:x}", seed, more)
        return scores(target, learnt, rows).numpy()

    kept, chosen = target.run.path(ledger.NAME), target.run.config.privacy
    spent = ledger.read_ledger(kept).spent.epsilon if kept.is_file() else None
    return canary.canary_test(train, planted.included, delta=chosen.delta if chosen else 0.0, ledger=spent)


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


def _show_pairs(target: AuditTarget, result: Any) -> None:
    """Write RUN/audit_pairs.png: the synthetic images nearest to a real one, beside it. It shows real patients."""
    if not isinstance(result, copies.CopySearch):
        return
    near = result.images.sort_values("similarity", ascending=False).head(SHOWN)
    size, train = target.run.config.size, target.cohort.train
    known, which = np.unique(near["train"], return_inverse=True)  # a real image may be the nearest of several
    real = target.cohort.images(train, size, [str(train.rows.index[row]) for row in known])
    at = torch.from_numpy(target.made.rows.index.get_indexer(near.index))
    rows = torch.cat([images(target.made, size)[at], real[torch.from_numpy(which)]], dim=3)[:, 0]
    write_bytes(target.run.path("audit_pairs.png"), png(rows.flatten(0, 1).numpy()))
