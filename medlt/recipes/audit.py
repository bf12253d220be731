"""The privacy audit of a finished run: what its images and its denoiser reveal about the train patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medlt import config as configs
from medlt.data.convert.encode import png
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.diffusion.sampler import last_steps
from medlt.diffusion.schedulers import factory
from medlt.files import write_bytes, write_json, write_table, write_text
from medlt.privacy.audit import copies, embedding, plants, reidentify, search
from medlt.privacy.audit.summary import summary, tables
from medlt.privacy.card import datasheet, model_card
from medlt.recipes._audit import (
    OTHERS,
    AuditOptions,
    AuditTarget,
    canary_test,
    gradient_canary_test,
    likelihood_ratio,
    membership_by_loss,
)
from medlt.recipes._codec import decoder, encode, make_codec
from medlt.recipes._cohort import EMBEDDING_SIZE, filed_cohort, patients
from medlt.recipes._denoiser import saved_denoiser
from medlt.recipes._encoder import given_encoder
from medlt.recipes._image_sets import synthetic_rows
from medlt.recipes._privacy import PrivateTraining
from medlt.recipes._setup import RunFolder, finished, logged
from medlt.records import with_checksum
from medlt.report.html import write_report
from medlt.report.scorecard import write_scorecard
from medlt.rng import seed_of
from medlt.training.runtime import silent
from medlt.types import InputError, Progress

__all__ = ["AuditOptions", "main"]
SHOWN = 8
STRENGTHS = (0.1, 0.3, 0.5)
"""Strengths of planted copies that pass through the run's own denoiser: shares of its steps."""


@dataclass(frozen=True)
class Unknown:
    """A part of an audit that could not run, with the reason."""

    reason: str
    passed: bool | None = None

    @property
    def sentence(self) -> str:
        """The reason, as the report shows it."""
        return f"Cannot conclude: {self.reason}"


def main(folder: Path, options: AuditOptions, progress: Progress = silent) -> dict[str, Any]:
    """Audit a run, write audit.json, its tables, the cards and the report, and return the content of audit.json.

    Raises InputError if the run is not finished, has no synthetic image, or has no patient outside the train split.
    """
    if options.encoder is not None:
        given_encoder(options.encoder)  # a folder that cannot be read ends the audit before it begins
    with logged(finished(Path(folder), progress)) as run, run.runtime.limited():
        target = _target(run, options)
        wanted: dict[str, Callable[[AuditTarget], Any]] = {
            "near_copies": find_near_copies, "reidentification": reidentify_patients, "membership": membership_by_loss,
        }  # fmt: skip
        wanted |= {"membership, shadow models": likelihood_ratio} if options.shadow_models else {}
        wanted |= {"canaries": canary_test} if options.canaries else {}
        white_box = options.canaries and run.config.privacy is not None
        wanted |= {"canaries in gradients": gradient_canary_test} if white_box else {}
        parts = {name: _tried(part, target) for name, part in wanted.items()}
    results = summary(parts)
    for name, table in tables(parts).items():
        write_table(run.path(f"{name.replace(', ', '_').replace(' ', '_')}.parquet"), table)
    write_json(run.path("audit.json"), with_checksum(results))
    write_text(run.path("MODEL_CARD.md"), model_card(run.folder))
    write_text(run.path("DATASHEET.md"), datasheet(run.folder))
    write_report(run.folder)
    write_scorecard(run.folder)
    if options.show_pairs:
        _show_pairs(target, parts["near_copies"])
    return results


def _target(run: RunFolder[configs.RunConfig], options: AuditOptions) -> AuditTarget:
    """Return the audit target: the run with its saved denoiser, and an embedding that compares images.

    The embedding is trained on members and non-members, so that it treats both alike.
    """
    cohort = filed_cohort(run)
    made = synthetic_rows(Manifest.read(run.path("manifest.parquet")))
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
    """Measure whether synthetic images lie nearer to real images than images of other patients do."""
    planted, train, held_out = _plants(target), target.cohort.train, target.held_out
    given = None if target.options.encoder is None else given_encoder(target.options.encoder)
    return copies.search_copies(
        search.measures(target.embed, given), images(target.made, target.run.config.size), target.pixels(train),
        target.pixels(held_out), planted, uids=list(target.made.rows.index), train_patients=patients(train),
        held_out_patients=patients(held_out), seed=target.seed("copies"), rate=target.options.fpr,
        planted=target.options.planted,
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


def _show_pairs(target: AuditTarget, result: Any) -> None:
    """Write RUN/audit_pairs.png: the synthetic images nearest to a real one, beside it. It shows real patients."""
    if not isinstance(result, copies.CopySearch):
        return
    near = result.images.sort_values("relative").head(SHOWN)
    size, parts = target.run.config.size, {"train": target.cohort.train, "held-out": target.held_out}
    uids = [str(parts[part].rows.index[row]) for part, row in zip(near["copied"], near["row"], strict=True)]
    known, which = np.unique(uids, return_inverse=True)  # a real image may be the nearest of several
    real = target.cohort.images(target.cohort.manifest, size, list(known))
    at = torch.from_numpy(target.made.rows.index.get_indexer(near.index))
    rows = torch.cat([images(target.made, size)[at], real[torch.from_numpy(which)]], dim=3)[:, 0]
    write_bytes(target.run.path("audit_pairs.png"), png(rows.flatten(0, 1).numpy()))
