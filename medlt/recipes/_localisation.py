"""Write localisation.parquet: how well the maps of a run find its masks and boxes, and what its images carry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pandas as pd

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.evaluation.localisation import score_images, score_maps
from medlt.files import write_table
from medlt.localise.maps import CodeMap
from medlt.localise.prior import PositionPrior
from medlt.localise.trust import GIVEN, Trust
from medlt.recipes._cohort import Cohort
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator
from medlt.synthesis.fusion import LatentFusion
from medlt.synthesis.recompose import Recomposition
from medlt.types import Localise, Synthesizer

PRIOR, CODE, USED = "prior", "code", "used"
"""The usual place alone, the map of the classifier on codes, and what the method falls back on without mask or box."""
N_BOOTSTRAP = 1000


def write_localisation(run: RunFolder[configs.RunConfig], cohort: Cohort, method: Synthesizer, made: Manifest) -> None:
    """Write the table of `medlt.evaluation.localisation`, if the method has maps and the data have masks or boxes.

    No stage is scored that is made of the mask or box that it is compared with. A private run has none.
    """
    if not isinstance(method, LatentFusion | Recomposition) or not cohort.regions.findings:
        return
    patients = {str(uid): str(owner) for uid, owner in cohort.manifest.rows["patient_id"].items()}
    stages, rng = scored_stages(cohort, method, patients), partial(numpy_generator, run.config.seed, "localisation")
    parts = {name: list(map(str, part.rows.index)) for name, part in (("train", cohort.train), ("val", cohort.val))}
    tables = [
        score_maps(stages, cohort.regions, uids, cohort.findings, patients, rng, rows=name, n_bootstrap=N_BOOTSTRAP)
        for name, uids in parts.items()
    ]
    tables.append(score_images(made.rows, patients, rng, n_bootstrap=N_BOOTSTRAP))
    if filled := [table for table in tables if len(table)]:
        write_table(run.path("localisation.parquet"), pd.concat(filled, ignore_index=True))


def scored_stages(
    cohort: Cohort, method: LatentFusion | Recomposition, patients: Mapping[str, str]
) -> dict[str, Localise]:
    """Return the stages to score: USED, the method's own without given masks and boxes, CODE of fusion, and PRIOR.

    If every train row has its mask or box, the method has no stage of its own.
    """
    trust = method.where.trust
    own = {name: stage for name, stage in trust.stages.items() if name not in GIVEN}
    used = {USED: Trust(own, trust.size)} if own else {}
    train = frozenset(map(str, cohort.train.rows.index))
    code = {CODE: CodeMap(method.explainer, cohort.findings, trust.size)} if isinstance(method, LatentFusion) else {}
    prior = method.where.prior or PositionPrior(cohort.regions, train, patients, trust.size)
    others: dict[str, Localise] = {**code, PRIOR: prior}
    return {**used, **own, **{name: stage for name, stage in others.items() if name not in own}}
