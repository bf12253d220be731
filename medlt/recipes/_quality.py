"""The checks of an image, and measurements of the kept images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.bands import Rule, in_band
from medlt.checks.consistency import CrossFitClassifiers, LabelConsistency, thresholds
from medlt.checks.near_copy import near_copy
from medlt.checks.parts import CheckParts, PluginCheck
from medlt.checks.sanity import Finite, Flat, Saturated, sanity
from medlt.checks.target_label import TargetLabelCheck
from medlt.classify.cam import class_activation_map
from medlt.classify.epistemic import Epistemic
from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation import introspection
from medlt.evaluation.quality import quality
from medlt.files import write_table
from medlt.plugins import CHECKS
from medlt.privacy.audit.embedding import fit_embedding
from medlt.privacy.audit.search import low_pass
from medlt.recipes._cohort import EMBEDDING_SIZE, Cohort, patients
from medlt.recipes._privacy import independent_rows, withheld
from medlt.recipes._setup import RunFolder
from medlt.report.introspection import save_pair
from medlt.synthesis.guides import target_columns
from medlt.synthesis.longtail import LongtailGuide
from medlt.types import Check, Synthesizer
from medlt.writer import DatasetWriter

MEASURES = 2
"""Number of measures of the near-copy filter, the embedding and small pixels, which share its fpr."""
FEWEST = 2
"""Smallest number of images on each side of a quality comparison."""
UNGUIDED = " unguided"  # no uid of an image ends so
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunCheckParts(CheckParts):
    """The parts of medlt's own optional checks, which also read the run and its real images."""

    run: RunFolder[configs.RunConfig]
    cohort: Cohort


def build_checks(
    run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers
) -> tuple[Check, ...]:
    """Return the checks in their order: sanity against the parents, label consistency by the verifier that was trained
    on neither parent, then the optional checks. A data-independent run checks the image alone."""
    return (*_usual_checks(run, cohort, verifiers), *_optional_checks(run, cohort, verifiers))


def _usual_checks(
    run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers
) -> tuple[Check, ...]:
    """Return the checks that are always on."""
    chosen = run.config.checks
    if run.config.data_independent:
        return Finite(), Flat(chosen.min_std), Saturated(), TargetLabelCheck()
    findings = list(cohort.findings)
    limits = thresholds(verifiers.held_out, cohort.train.rows[findings], chosen.verifier_quantile)
    parents = partial(_parents, cohort, run.config.image_size)
    usual = sanity(parents, min_std=chosen.min_std, max_correlation=chosen.max_correlation)
    label = LabelConsistency(verifiers.verifiers, dict(limits), findings, chosen.verifier_quantile)
    return *usual, TargetLabelCheck(), label


def _optional_checks(
    run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers
) -> tuple[Check, ...]:
    """Return the checks that the config turns on. The parts of a data-independent run hold no real row."""
    independent, findings = run.config.data_independent, cohort.findings
    parts = RunCheckParts(
        findings=findings,
        tail=cohort.tail if not independent else cohort.requested,
        rows=independent_rows(cohort.requested, findings).table if independent else cohort.train.rows,
        images=withheld if independent else partial(_parents, cohort, run.config.image_size),
        verifiers=verifiers,
        size=run.config.image_size,
        runtime=run.runtime,
        run=run,
        cohort=cohort,
    )
    built = {name: CHECKS.build(name, settings, parts) for name, settings in run.config.checks.optional.items()}
    made = {name: PluginCheck(name, check) if CHECKS.package(name) else check for name, check in built.items()}
    return tuple(check for check in made.values() if check is not None)


def in_band_check(chosen: configs.InBandConfig, parts: RunCheckParts) -> Check | None:
    """Return the in-band check, which rejects images out of distribution; None in a run without verifiers."""
    verifiers, cohort = parts.verifiers, parts.cohort
    features = [one.features for one in verifiers.verifiers if isinstance(one, Classifier)]
    if not features:
        return None
    rule = Rule(chosen.form, chosen.k, chosen.quantile)
    labels = parts.rows[list(cohort.findings)]
    check = in_band(features, parts.images, verifiers.fold, labels, cohort.tail, rule=rule, limit=chosen.limit)
    if without := [
        f"{name} (fold {k})" for k, held in enumerate(check.bands) for name in held if not held[name].limit > 0
    ]:
        log.warning(
            "no band of %s: too few real positives, so all their images will be rejected; lower checks.folds, or write "
            "checks.in_band.form: centre or checks.in_band: null",
            ", ".join(without),
        )
    return check


def _parents(cohort: Cohort, size: int, uids: Sequence[str]) -> Tensor:
    return cohort.images(cohort.train, size, uids)


def near_copy_check(chosen: configs.NearCopyConfig, parts: RunCheckParts) -> Check | None:
    """Return the near-copy filter, which rejects images nearer to one train image than validation images are.

    Its limit needs enough validation patients; with fewer the result is None, with a warning. Its embedding is trained
    on train and validation images, so that it treats both alike.
    """
    run, cohort = parts.run, parts.cohort
    train, val = (cohort.images(part, EMBEDDING_SIZE) for part in (cohort.train, cohort.val))
    owners = [patients(part) for part in (cohort.train, cohort.val)]
    one_each = [owners[1].index(patient) for patient in dict.fromkeys(owners[1])]
    if (enough := math.ceil(MEASURES / chosen.fpr)) > len(one_each):
        log.warning(
            "no near-copy filter: %d validation patients are too few for a rate of %g, which needs %d; add patients, "
            "or raise checks.near_copy.fpr", len(one_each), chosen.fpr, enough
        )  # fmt: skip
        return None
    with run.stage("embedding"):
        embed = fit_embedding(
            torch.cat([train, val]), owners[0] + owners[1], runtime=run.runtime.seeded("embedding"), store=run.store,
            steps=chosen.steps,
        )  # fmt: skip
    return near_copy([embed, low_pass], val[one_each], train, chosen.fpr)


def measure(run: RunFolder[configs.RunConfig], cohort: Cohort, verifiers: CrossFitClassifiers, made: Manifest) -> None:
    """Write quality.parquet: fidelity, diversity and rarity of the kept images against real validation images.

    The features are those of the first verifier. It was not fitted to the validation images, although its best step was
    chosen on them, and it did not guide the images. Nothing is written if either side has fewer than two images.
    """
    verifier, held = next(iter(verifiers.verifiers), None), cohort.val
    if not isinstance(verifier, Classifier) or min(len(held.rows), len(made.rows)) < FEWEST:
        return
    real = verifier.features(cohort.images(held, verifier.size)).numpy()
    synthetic = verifier.features(images(made, verifier.size)).numpy()
    table = quality(real, held.labels(), synthetic, list(made.rows["finding"]), cohort.findings)
    write_table(run.path("quality.parquet"), table)


@dataclass(frozen=True)
class _Measured:
    """Measurements of images [B,1,S,S] in [0,1], in the order of rows: signal [B], near [B,k], maps [B,h,w]."""

    rows: pd.DataFrame
    images: Tensor
    signal: np.ndarray
    near: np.ndarray
    maps: np.ndarray


def introspect(
    run: RunFolder[configs.RunConfig], cohort: Cohort, method: Synthesizer, plan: pd.DataFrame, made: Manifest,
    writer: DatasetWriter,
) -> None:  # fmt: skip
    """Write introspection.parquet and its gallery, if Longtail Guidance was used and images were kept.

    They compare the images of which the guidance classifier is least certain with unguided ones.
    """
    guide = next((one for one in method.guidance if isinstance(one, LongtailGuide)), None)
    if guide is None or not len(made.rows) or not isinstance(guide.guidance_classifier, Epistemic):
        return
    size, rows = guide.guidance_classifier.size, plan.loc[made.rows.index]

    def build(folder: Path) -> None:
        guided = _measure(cohort, guide, made.rows, images(made, size).float() / 255)
        top = introspection.most(guided.signal, np.ones(len(made.rows), dtype=bool))
        plain = method.with_guidance(tuple(one for one in method.guidance if one is not guide))
        unguided = _measure(cohort, guide, made.rows, torch.cat([batch.images for batch in plain.run(rows)]))
        known = pd.concat([_attributes(made, guided, ""), _attributes(made, unguided, UNGUIDED)])
        uids = list(made.rows.index.astype(str))
        highest = [uid for uid, high in zip(uids, top, strict=True) if high]
        table = introspection.introspect(known, highest, [uid + UNGUIDED for uid in uids])
        write_table(folder / "introspection.parquet", table)
        write_table(folder / "introspection_gallery.parquet", _gallery(folder, cohort, guided, top))

    run.runtime.progress("introspection", 0, 1)
    writer.keep("introspection", rows, build)
    run.runtime.progress("introspection", 1, 1)


def _measure(cohort: Cohort, guide: LongtailGuide, rows: pd.DataFrame, pixels: Tensor) -> _Measured:
    """Return the guidance classifier's measurements of images."""
    head = guide.guidance_classifier
    assert isinstance(head, Epistemic)
    real = cohort.training_set(cohort.train, head.size)
    column = target_columns(rows["finding"], cohort.findings)
    base = Classifier(head.net, head.size, {"positive": [0] * len(cohort.findings)})
    signal = head.score(pixels, guide.statistic)[torch.arange(len(rows)), column].numpy()
    near = introspection.nearest_real(base.features(pixels).numpy(), base.features(real.images).numpy(), real.uids)
    sized = torch.nn.functional.interpolate(pixels, (head.size, head.size), mode="area")
    return _Measured(rows, pixels, signal, near, class_activation_map(base, sized, column).numpy())


def _attributes(made: Manifest, measured: _Measured, suffix: str) -> pd.DataFrame:
    """Return attributes of images, with uids that end in `suffix`."""
    uids = [f"{uid}{suffix}" for uid in made.rows.index]
    labels = pd.DataFrame(made.labels(), index=uids, columns=list(made.findings))
    about = made.rows[[name for name in ("view", "sex", "age") if name in made.rows]].set_axis(uids)
    return introspection.describe(labels, about, measured.maps, measured.near)


def _gallery(folder: Path, cohort: Cohort, measured: _Measured, top: np.ndarray) -> pd.DataFrame:
    """Write into `folder` one picture per top image, beside its nearest real one, and return their table."""
    at = np.flatnonzero(top)
    near = [str(measured.near[i][0]) for i in at]
    real = cohort.images(cohort.train, measured.images.shape[-1], near).float() / 255
    uids = measured.rows.index[at].astype(str)
    files = [save_pair(folder, uid, measured.images[i], one) for uid, i, one in zip(uids, at, real, strict=True)]
    columns = {
        "finding": list(measured.rows["finding"].iloc[at]),
        "signal": measured.signal[at],
        "nearest": near,
        "file": files,
    }
    return pd.DataFrame(columns, index=pd.Index(uids, name="uid"))
