"""Where findings are: the maps of a run, in an order of trust, and how well each of them finds a known lesion.

No stage reads the region that it is compared with. The usual place of a finding leaves out the patient of the image.
The image classifiers and the classifier on codes are trained on labels alone. They are trained on the train rows whose
maps they make, as every map of a training set is.

A verifier never steers the mask of an image that it checks. By default the maps have networks of their own, whose
digests are compared with the verifiers'. With `networks: 0`, and in a private run, which trains no further network, the
maps of a row come from the verifiers of the other folds: of all verifiers, only that of the row's own fold checks the
images made from it (`medlt.checks.consistency`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medlt import config as configs
from medlt.checks.separation import digest_network, require_disjoint_networks
from medlt.classify.train import Classifier, fit_classifier
from medlt.data.boxes import atlas
from medlt.data.columns import SIDE
from medlt.data.regions import Regions
from medlt.files import digest, digest_tensors
from medlt.localise.code_explainer import CodeExplainer
from medlt.localise.converge import converged
from medlt.localise.given import Given, OnSide, Side
from medlt.localise.maps import CodeMap, ImageMap
from medlt.localise.measure import Localisation, Measured, best_stage, measure
from medlt.localise.prior import AtUsualPlace, PositionPrior
from medlt.localise.register import collection_poses
from medlt.localise.trust import Trust
from medlt.recipes._models import Learnt
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.types import InputError, Localise

CHOICE = ("image_prior", "image", "prior", "code")
"""Stages among which validation rows choose."""
SIDES: dict[str, Side] = {"left": "left", "l": "left", "right": "right", "r": "right"}
Localised = configs.Fusion | configs.Recompose
"""Methods that need to know where findings are."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLocalisation:
    """The localisation of a run, its coder with a converged classifier if there is one, and a digest of all that makes
    the maps."""

    coder: SimplicialCoder | None
    localisation: Localisation
    digest: str


def localise(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: Localised, coder: SimplicialCoder | None
) -> RunLocalisation:
    """Train or load the stages of `chosen.localise`, and measure them where regions are given.

    coder: the sparse code, None for a method without one, which then has no stage `code`.
    """
    with run.stage("localise"):
        own = None if coder is None else converged_coder(run, learnt, chosen.localise, coder)
        stages = Stages(run, learnt, chosen, own)
        measured = stages.measured
        trust = Trust(stages.ordered(), stages.size)
        known = Localisation(trust, learnt.cohort.regions, measured, stages.patients, stages.prior)
    made = RunLocalisation(stages.coder, known, stages.digest())
    run.record(digests={"localise": made.digest}, metrics={"localise": _summary(measured)})
    return made


def _summary(measured: Measured) -> dict[str, dict[str, float]]:
    """Return "stage/finding" -> pixel AUROC and its interval."""
    return {f"{stage}/{finding}": {"auroc": round(one.auroc, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
            for (stage, finding), one in measured.items()}  # fmt: skip


def converged_coder(
    run: RunFolder[configs.RunConfig], learnt: Learnt, chosen: configs.LocaliseConfig, coder: SimplicialCoder
) -> SimplicialCoder:
    """Return the coder with a converged classifier; as it is in a private run, which no other training may follow."""
    if not chosen.code_steps or learnt.private is not None:
        return coder
    cohort, latents, sparse = learnt.cohort, learnt.latents, run.config.sparse
    uids = list(cohort.train.rows.index)
    return converged(
        coder, latents.rows(uids), cohort.train.labels(), contents=digest(latents.contents, uids), store=run.store,
        runtime=run.runtime.seeded("localise"), steps=chosen.code_steps, batch_size=sparse.batch_size,
        learning_rate=sparse.learning_rate, weight_decay=sparse.weight_decay,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of a run. A stage that is trained is trained when it is first used."""

    run: RunFolder[configs.RunConfig]
    learnt: Learnt
    chosen: Localised
    coder: SimplicialCoder | None

    @property
    def size(self) -> tuple[int, int]:
        """The grid (h,w) of all maps: that of a latent."""
        height, width = self.learnt.latents.cache.shape[-2:]
        return height, width

    @cached_property
    def patients(self) -> dict[str, str]:
        """Uid -> patient, of all rows."""
        return {str(uid): str(one) for uid, one in self.learnt.cohort.manifest.rows["patient_id"].items()}

    @cached_property
    def code(self) -> Localise:
        """The map of the classifier on codes."""
        if self.coder is None:
            raise InputError("localise: stage code needs the sparse code; remove it from method.localise.order")
        method = self.chosen.cam if isinstance(self.chosen, configs.Fusion) else "gradcam"
        explainer = CodeExplainer(self.coder, self.learnt.latents, method)
        return CodeMap(explainer, self.learnt.cohort.findings, self.size)

    @cached_property
    def image(self) -> ImageMap:
        """The map of image classifiers: of their own, or of the verifiers that do not check the image."""
        cohort, verifiers = self.learnt.cohort, self.learnt.verifiers
        size = self.run.config.classifier.size
        own = self.learnt.private is None and self.chosen.localise.networks > 0
        checking = [one for one in verifiers.verifiers if isinstance(one, Classifier)]
        members = self._networks() if own else checking
        if own:
            named = {"localise": members, "verifier": checking}
            require_disjoint_networks({k: [digest_network(one.net) for one in nets] for k, nets in named.items()})
        elif len(members) < 2:
            raise InputError("localise: fewer than 2 verifiers have maps; raise checks.folds, or localise.networks")
        out = None if own else {str(uid): int(fold) for uid, fold in verifiers.fold.items()}
        return ImageMap(
            members, lambda uids: cohort.images(cohort.manifest, size, uids), cohort.findings, self.size, out
        )

    @cached_property
    def prior(self) -> PositionPrior:
        """The usual place of a finding, by train rows and by boxes of images that are not in the collection."""
        cohort, table = self.learnt.cohort, self.chosen.localise.boxes
        train = frozenset(map(str, cohort.train.rows.index))
        if table is None:
            return PositionPrior(cohort.regions, train, self.patients, self.size, self.poses)
        regions, owners = outside(atlas(table, cohort.findings), self.patients, set(train))
        boxes = {
            name: {**regions.boxes.get(name, {}), **cohort.regions.boxes.get(name, {})} for name in cohort.findings
        }
        merged = Regions(cohort.regions.files, boxes)
        return PositionPrior(merged, train | set(owners), {**owners, **self.patients}, self.size, self.poses)

    @cached_property
    def poses(self) -> Mapping[str, Tensor] | None:
        """Uid -> pose of train and validation rows; None for places in the image, no cases, and a private run."""
        chosen, cases = self.chosen.localise, self.learnt.cohort.regions.findings
        if chosen.coordinates == "image" or self.learnt.private is not None or not (cases or chosen.boxes):
            return None
        cohort, size = self.learnt.cohort, self.run.config.classifier.size
        train, val = (list(map(str, part.rows.index)) for part in (cohort.train, cohort.val))
        contents = digest(size, cohort.named(cohort.train), cohort.named(cohort.val))
        return collection_poses(
            lambda uids: cohort.images(cohort.manifest, size, uids), train, val, contents=contents, store=self.run.store
        )

    @cached_property
    def image_prior(self) -> Localise:
        """The map of the image classifiers at the usual place."""
        return AtUsualPlace(self.image, self.prior)

    @cached_property
    def learned(self) -> dict[str, Localise]:
        """The learned stages that the order names, the most trusted first, "best" among them by its own name."""
        names: list[str] = []
        for name in self.chosen.localise.order:
            names += [self.best] if name == "best" else [name] if name in CHOICE else []
        return {name: getattr(self, name) for name in dict.fromkeys(names)}

    @cached_property
    def needed(self) -> bool:
        """Whether a train row has a finding whose region is not given, so that somebody must draw a map.

        Recomposition needs the places of tail findings alone, and for half an image a given side is enough.
        """
        cohort, chosen = self.learnt.cohort, self.chosen
        given = {"mask", "box"} & set(chosen.localise.order)
        names = [name for name in cohort.findings if name != cohort.manifest.no_finding]
        sides: Mapping[str, Mapping[str, Side]] = {}
        if isinstance(chosen, configs.Recompose):
            if chosen.side is not None:
                return False
            names, sides = list(cohort.tail), self._sides() if self._whole_side else {}
        return any(
            cohort.regions.kind(str(uid), name) not in given and uid not in sides.get(name, {})
            for name in names
            for uid in cohort.train.rows.index[cohort.train.rows[name] == 1]
        )

    @property
    def _whole_side(self) -> bool:
        """Whether a side says enough, without a map on it."""
        half = isinstance(self.chosen, configs.Recompose) and self.chosen.variant == "half"
        return half and "side" in self.chosen.localise.order

    @cached_property
    def best(self) -> str:
        """The stage of CHOICE that finds the regions of validation rows best; image_prior without such rows."""
        choice = [name for name in CHOICE if name != "code" or self.coder is not None]
        stages = {name: getattr(self, name) for name in choice}
        uids = list(map(str, self.learnt.cohort.val.rows.index))
        name = best_stage(self._measure(stages, uids, "val"), choice, choice[0])
        log.info("localise: stage %s makes the maps", name)
        return name

    @cached_property
    def measured(self) -> Measured:
        """The quality of every stage that is used, on train and validation rows with regions."""
        if not self.needed:
            return {}
        rows = (self.learnt.cohort.train.rows, self.learnt.cohort.val.rows)
        return self._measure(self.learned, [str(uid) for part in rows for uid in part.index], "both")

    def ordered(self) -> dict[str, Localise]:
        """Return the stages by name, in the order of the config."""
        order, regions = self.chosen.localise.order, self.learnt.cohort.regions
        learned = self.learned if self.needed else {} if self.coder is None else {"code": self.code}
        stages: dict[str, Localise] = {}
        for name in order:
            if name in ("mask", "box"):
                stages[name] = Given(regions, name, self.size)
            elif name == "side":
                sides = self._sides()
                inner = Trust(learned, self.size)
                stages |= {name: OnSide(inner, sides, self.size)} if sides and (learned or self._whole_side) else {}
            else:
                one = self.best if name == "best" and self.needed else name
                stages |= {one: learned[one]} if one in learned else {}
        return stages

    def digest(self) -> str:
        """Return a digest of the order, the coder, the networks and the regions."""
        networks: list[str] = []
        if self.needed and {"image", "image_prior"} & set(self.learned):
            networks = [digest_network(one.net) for one in self.image.members]
        table, regions = self.chosen.localise.boxes, self.learnt.cohort.regions
        cases = "" if table is None else self.prior.regions.digest()
        learned, given = list(self.learned) if self.needed else [], self.chosen.localise.order
        poses = digest_tensors((self.poses or {}) if {"prior", "image_prior"} & set(learned) else {})
        coder = "" if self.coder is None else self.coder.digest
        parts = [coder, networks, regions.digest(), cases, poses, self._sides()]
        return digest("localise", given, learned, *parts)

    def _networks(self) -> list[Classifier]:
        """Train classifiers for maps: all steps, and the weights of the last one."""
        config, cohort = self.run.config, self.learnt.cohort
        steps = self.chosen.localise.steps or 3 * config.classifier.steps
        train, val = (cohort.training_set(part, config.classifier.size) for part in (cohort.train, cohort.val))
        options: dict[str, Any] = config.classifier.model_dump(exclude={"size"})
        options |= {"steps": steps, "evaluate_every": steps, "patience": 1}
        return [
            fit_classifier(train, val, runtime=self.run.runtime.seeded("localise", k), store=self.run.store,
                           name=f"localise {k}", **options)
            for k in range(self.chosen.localise.networks)
        ]  # fmt: skip

    def _measure(self, stages: Mapping[str, Localise], uids: Sequence[str], of: str) -> dict[tuple[str, str], Any]:
        cohort, seed = self.learnt.cohort, self.run.config.seed
        names = [name for name in cohort.findings if cohort.regions.known(name)]
        rng: Callable[[str, str], np.random.Generator] = lambda stage, finding: numpy_generator(  # noqa: E731
            seed, "localise", of, stage, finding
        )
        return measure(stages, cohort.regions, uids, names, self.patients, rng)

    def _sides(self) -> dict[str, dict[str, Side]]:
        """Return finding -> uid -> side, by the columns `side_FINDING` of the train rows."""
        rows = self.learnt.cohort.train.rows
        columns = {name: f"{SIDE}{name}" for name in self.learnt.cohort.findings if f"{SIDE}{name}" in rows}
        return {name: _sides_of(rows[column]) for name, column in columns.items()}


def outside(table: Regions, patients: Mapping[str, str], train: set[str]) -> tuple[Regions, dict[str, str]]:
    """Return the boxes of images that are not in the collection, and name -> patient of these images.

    An image 00013118_008.png is of patient 13118, as in ChestX-ray14. Those of validation and test patients are left
    out; patients: uid -> patient of the collection.
    """
    closed = {_number(one) for uid, one in patients.items() if uid not in train}
    owners = {}
    for name in {name for of in table.boxes.values() for name in of}:
        stem = name.removesuffix(".png")
        owner = _number(stem.partition("_")[0])
        if name not in patients and stem not in patients and owner not in closed:
            owners[name] = next((one for one in (owner, owner.zfill(8)) if one in set(patients.values())), owner)
    boxes = {finding: {name: one for name, one in of.items() if name in owners} for finding, of in table.boxes.items()}
    return Regions(boxes=boxes), owners


def _number(patient: str) -> str:
    """Return the id of a patient without leading zeros."""
    return patient.lstrip("0") or patient


def _sides_of(column: pd.Series) -> dict[str, Side]:
    """Return uid -> side where it is known. Raises InputError for anything but left, right, L, R and blanks."""
    known = column.dropna().astype(str).str.strip().str.lower()
    known = known[known != ""]
    if len(strange := known[~known.isin(list(SIDES))]):
        raise InputError(f"{column.name} is {strange.iloc[0]!r} (uid {strange.index[0]}); write left or right")
    return {str(uid): SIDES[one] for uid, one in known.items()}
