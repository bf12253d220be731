"""The strength of each guide of a run: measured on rows of its own, and chosen if its weight is auto."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.consistency import LabelConsistency
from medlt.classify.epistemic import Epistemic
from medlt.classify.train import Classifier
from medlt.diffusion.displacement import realised
from medlt.evaluation.calibration import PairedMeasures, RealDistances, allowed, chosen, summary, tabulate
from medlt.files import digest, read_tensors, write_table, write_tensors
from medlt.recipes._methods import Built
from medlt.recipes._models import Learnt
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator, seed_of
from medlt.synthesis.guides import Strength, target_columns
from medlt.synthesis.longtail import LongtailGuide
from medlt.synthesis.minority import MinorityGuide
from medlt.types import Batch

FORMAT = 1  # part of the key: increase it if the same settings would measure something else
PILOT, CLOSE, TRIES, RESPONSES = 8, 0.1, 4, (1e-3, 1e2)
"""Rows on which a response is measured, the error that is close enough, how often it is measured, and its range."""
MOST_REAL = 2000
"""Real train and validation images, of each at most, that distances are measured from."""
log = logging.getLogger(__name__)

Run: TypeAlias = RunFolder[configs.RunConfig]
Guide: TypeAlias = Any  # a Strength that is a medlt.synthesis.guides.Guide


def settle(run: Run, learnt: Learnt, built: Built) -> Built:
    """Return the method with the measured strength of each guide, and write calibration.parquet and run.json.

    The response of the network is measured, so that a weight is the displacement that it names. A weight auto becomes
    the largest allowed strength; a guide without one is left out. Each guide is measured without the others.
    """
    guides = tuple(built.method.guidance)
    settings = [one for one in getattr(run.config.method, "guidance", ()) if one.weight]
    if not settings or not all(isinstance(guide, Strength) for guide in guides):
        return built
    with run.stage("calibration"):
        settled = [
            _Calibration(run, learnt, built, guide, one).settled() for guide, one in zip(guides, settings, strict=True)
        ]
    table = pd.concat([one.table for one in settled], keys=range(len(settled)), names=["guide"]).reset_index("guide")
    write_table(run.path("calibration.parquet"), table)
    run.record(guidance=[one.record for one in settled])
    for one in settled:
        one.warn()
    models = {**built.models, "calibration": digest("calibration", [one.record for one in settled])}
    strengths = [(float(one.guide.weight), float(one.guide.response)) for one in settled]
    return replace(with_strengths(built, strengths), models=models, strengths=tuple(strengths))


def with_strengths(built: Built, strengths: Sequence[tuple[float, float]]) -> Built:
    """Return the method with the strengths that `settle` measured in another process; those of 0 are left out."""
    if not strengths:
        return built
    pairs = zip(built.method.guidance, strengths, strict=True)
    guides = [replace(cast(Guide, guide), weight=w, response=response) for guide, (w, response) in pairs if w]
    return Built(built.method.with_guidance(tuple(guides)), built.models)


@dataclass(frozen=True)
class Settled:
    """A guide with its strength, the table of what was measured, and the record for run.json."""

    guide: Guide
    table: pd.DataFrame
    record: dict[str, Any]

    def warn(self) -> None:
        """Warn of a strength that is not reached, and of a grid without an allowed strength."""
        kind, weight = self.record["kind"], self.record["weight"]
        if weight == 0:
            log.warning("%s guide: no strength stays within the bounds of `calibration`, so it is left out", kind)
        elif self.record["capped"]:
            log.warning(
                "%s guide: a weight of %g displaces the latents by %.3g only; guide more steps (every, window) or "
                "raise the cap to reach it", kind, weight, self.record["displacement"],
            )  # fmt: skip


@dataclass(frozen=True)
class _Calibration:
    """One guide of a run with its settings."""

    run: Run
    learnt: Learnt
    built: Built
    guide: Guide
    settings: configs.GuideConfig

    def settled(self) -> Settled:
        """Measure the guide at its weight, or at a grid of strengths if the weight is auto."""
        auto = self.settings.weight == configs.AUTO
        displaces = getattr(self.guide, "weight_unit", "displacement") == "displacement"
        table = tabulate(list(self._grid() if auto else self._fixed(displaces)))
        weight = chosen(table) if auto else float(self.guide.weight)
        row = table[table["strength"] == weight].iloc[0]
        record = {
            "kind": self.settings.kind, "weight": weight, "chosen": auto,
            "unit": "displacement" if displaces else "published", "response": float(row["response"]),
            "displacement": float(row["displacement"]), "rows": int(row["rows"]),
            "capped": bool(displaces and weight and self._response(weight)[1] < 1 - 2 * CLOSE),
        }  # fmt: skip
        table = table.assign(kind=self.settings.kind, chosen=table["strength"] == weight)
        return Settled(replace(self.guide, weight=weight, response=float(row["response"])), table, record)

    def _fixed(self, displaces: bool) -> Iterator[dict[str, float]]:
        """Yield rows of the table: without guidance, and at the guide's weight."""
        weight = float(self.guide.weight)
        response = self._response(weight)[0] if displaces else 1.0
        yield from (self._row(strength, response) for strength in (0.0, weight))

    def _grid(self) -> Iterator[dict[str, float]]:
        """Yield rows of the table up to the first strength that is not allowed, and that one."""
        strengths = self.run.config.calibration.weights
        yield self._row(0.0, 1.0)
        for done, strength in enumerate(strengths):
            self.run.runtime.progress("calibration", done, len(strengths))
            row = self._row(strength, self._response(strength)[0])
            yield row
            if not row["allowed"]:
                return

    def _response(self, strength: float) -> tuple[float, float]:
        """Return the network's response at a strength, by repeated correction, and the displacement over the strength.

        It is measured on a few rows, without the level of the finding, which stops rows on purpose.
        """
        rows, response, ratio = self._rows.head(PILOT), 1.0, 1.0
        plain = self._sampled(rows, 0.0, 1.0)["latents"]
        for last in range(TRIES):
            moved = self._sampled(rows, strength, response, whole=True)["latents"]
            ratio = float(realised(moved, plain).mean()) / strength
            if abs(ratio - 1) < CLOSE or last == TRIES - 1:
                break
            response = min(max(response * ratio, RESPONSES[0]), RESPONSES[1])
        return response, ratio

    def _row(self, strength: float, response: float) -> dict[str, float]:
        """Return the row of one strength, measured on all calibration rows."""
        bounds = self.run.config.calibration
        plain, guided = (self._measured(at, r) for at, r in ((0.0, 1.0), (strength, response)))
        none, row = summary(0.0, 1.0, plain, plain), summary(strength, response, guided, plain)
        return row | {"allowed": allowed(row, none, bounds.max_outside, bounds.max_label_loss)}

    def _measured(self, strength: float, response: float) -> PairedMeasures:
        """Return measurements of all calibration rows at a strength, beside their unguided twins."""
        parts, twins = (self._sampled(self._rows, *at) for at in ((strength, response), (0.0, 1.0)))
        own = {name: parts[name].double().numpy() for name in ("knn", "verifier", "signal")}
        return PairedMeasures(displacement=realised(parts["latents"], twins["latents"]).numpy(), **own)

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """Plan rows of calibration: their seeds are of a stream of their own, the tail findings take turns."""
        wanted, findings = self.run.config.calibration.rows, list(self.learnt.cohort.shortfall())
        findings = findings or list(self.learnt.cohort.requested)
        each = -(-wanted // len(findings))
        plan = self.built.method.plan(dict.fromkeys(findings, each), seed_of(self.run.config.seed, "calibration"))
        first = plan[plan["candidate"] == 0]
        order = first.groupby("finding").cumcount().sort_values(kind="stable").index
        return first.loc[order].head(wanted)

    def _sampled(self, rows: pd.DataFrame, strength: float, response: float, whole: bool = False) -> dict[str, Tensor]:
        """Return latents [B,...] and measurements [B] of rows at a strength, from the store if they are there.

        whole: guide every row, however rare it is for its finding already.
        """
        settings = self.settings.model_dump(mode="json", exclude={"weight"})
        method = self.run.config.method.model_dump(mode="json", exclude={"guidance"})
        key = {
            "format": FORMAT, "models": dict(self.built.models), "guide": settings, "method": method,
            "rows": list(rows.index), "verifiers": digest(self.learnt.verifiers.held_out.to_json()),
            "data": self.learnt.cohort.manifest.digest(), "strength": repr(strength), "response": repr(response),
            "whole": whole,
        }  # fmt: skip

        def build(folder: Path) -> None:
            free = {"reference": None} if whole and isinstance(self.guide, MinorityGuide) else {}
            guide = replace(self.guide, weight=strength, response=response, **free)
            write_tensors(folder / "measured.safetensors", self._measure(rows, (guide,) if strength else ()))

        return read_tensors(self.run.store.make("calibration", key, build).path("measured.safetensors"))

    def _measure(self, rows: pd.DataFrame, guides: tuple[Guide, ...]) -> dict[str, Tensor]:
        """Sample rows and measure them."""
        latents: list[Tensor] = []
        method = cast(Any, self.built.method.with_guidance(guides))
        decode = method.decode

        def recorded(z: Tensor) -> Tensor:
            latents.append(z.detach().cpu().float())
            return cast(Tensor, decode(z))

        batches = list(replace(method, decode=recorded).run(rows))
        images, z = torch.cat([batch.images for batch in batches]), torch.cat(latents)
        if method.backbone.space == "standardised":
            z = method.standardiser.to(z)
        knn, signal = self._distances(images), self._signal(rows, images)
        values = {"knn": knn, "verifier": _labels(self.learnt, batches), "signal": signal}
        return {"latents": z, **{name: torch.from_numpy(value.astype(np.float64)) for name, value in values.items()}}

    def _distances(self, images: Tensor) -> np.ndarray:
        """Return how far images are from real ones, NaN in a private run, which reads none."""
        if (real := self._real) is None:
            return np.full(len(images), np.nan)
        return real.distance(self._verifier.features(images).cpu().numpy())

    @property
    def _verifier(self) -> Classifier:
        return cast(Classifier, self.learnt.verifiers.verifiers[0])

    @cached_property
    def _real(self) -> RealDistances | None:
        """Distances among real images in the features of the first verifier; None without verifiers or images."""
        verifiers, cohort = self.learnt.verifiers.verifiers, self.learnt.cohort
        if self.run.config.privacy is not None or not verifiers or not isinstance(verifiers[0], Classifier):
            return None
        features = []
        for part in (cohort.train, cohort.val):
            uids = part.rows.index[np.sort(_few(len(part.rows), self.run.config.seed))]
            features.append(self._verifier.features(cohort.images(part, self._verifier.size, list(uids))).cpu().numpy())
        return RealDistances.of(*features)

    def _signal(self, rows: pd.DataFrame, images: Tensor) -> np.ndarray:
        """Return the statistic that Longtail Guidance raises, of each row's finding; NaN for other guides."""
        head = getattr(self.guide, "guidance_classifier", None)
        if not isinstance(self.guide, LongtailGuide) or not isinstance(head, Epistemic):
            return np.full(len(rows), np.nan)
        column = target_columns(rows["finding"], self.learnt.cohort.findings)
        return head.score(images, self.guide.statistic)[torch.arange(len(rows)), column].numpy()


def _few(rows: int, seed: int) -> np.ndarray:
    """Return at most `MOST_REAL` row numbers, drawn by the seed."""
    return numpy_generator(seed, "calibration real").permutation(rows)[:MOST_REAL]


def _labels(learnt: Learnt, batches: Sequence[Batch]) -> np.ndarray:
    """Return the probability of each image's finding by the verifier of its fold; NaN without verifiers."""
    findings = list(learnt.cohort.findings)
    if not learnt.verifiers.verifiers:
        return np.full(sum(len(batch.rows) for batch in batches), np.nan)
    check = LabelConsistency(learnt.verifiers.verifiers, dict.fromkeys(findings, float("nan")), findings)
    return np.array([result.value for batch in batches for result in check(batch)])
