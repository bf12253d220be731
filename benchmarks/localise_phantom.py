"""How well every stage of localisation finds the lesions of drawn patients, and what fused images carry of them.

    python benchmarks/localise_phantom.py --patients 640 --steps 1200 --seed 71 --code

A fresh cohort. The stages are those of a run (`medlt.localise`), but no image is made: what a fused image carries is
decided before. The masks of the drawings score, and give the usual place of a finding by *other* patients; no stage
reads those of its own patient. The first table is of the train rows with a tail finding, whose maps fusion uses. The
second takes T of rule tail_only from each map, with the areas of a plan; the label's mass is E of
`medlt.synthesis.labels`. `--code` adds the maps of the simplicial code, which needs a codec, verifiers and a code.
"""

from __future__ import annotations

import argparse
import logging
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table

from medlt import config as configs
from medlt.classify.train import Classifier, fit_classifier
from medlt.files import digest
from medlt.localise.code_explainer import CodeExplainer
from medlt.localise.maps import CodeMap, ImageMap
from medlt.localise.measure import Localisation, measure
from medlt.localise.prior import AtUsualPlace, PositionPrior
from medlt.localise.register import collection_poses
from medlt.localise.trust import Trust
from medlt.metrics.localisation import correlation_interval, macro_interval, mean_interval, measures
from medlt.recipes._cohort import Cohort, open_cohort
from medlt.recipes._localise import converged_coder
from medlt.recipes._models import learn_sparse_code
from medlt.recipes._setup import RunFolder, opened
from medlt.recipes.augment import check, learn
from medlt.rng import numpy_generator
from medlt.synthesis.evidence import carried, evidence
from medlt.synthesis.fuse import located
from medlt.synthesis.labels import UNSURE, cam_share
from medlt.types import Localise

DRAWS, CELLS = 2000, (16, 16)
COLUMNS = (
    "fused rows by", "lesion carried", "by finding", "area", "map's mass and carried, rank r",
    "label's mass and carried, rank r", "asserted", "of these, carry < 0.5",
)  # fmt: skip


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    sizes = {"patients": 640, "steps": 1200, "seed": 71, "networks": 5, "uses": 16, "generations": 2}
    for name, value in (sizes | {"codec-steps": 400, "verifier-steps": 400}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--home", type=Path, default=Path("runs/localise_phantom"))
    return parser.parse_args()


def config(given: argparse.Namespace) -> configs.RunConfig:
    """The config of the run that holds cohort and code."""
    tree = {
        "output_dir": str(given.home / "run"), "artifacts_dir": str(given.home / "artifacts"), "seed": given.seed,
        "size": 64, "threads": 1, "method": "fusion",
        "data": {"kind": "phantom", "patients": given.patients, "size": 128, "imbalance": 20,
                 "shares": [0.7, 0.25, 0.05]},
        "codec": {"kind": "train", "width": 32, "steps": given.codec_steps, "learning_rate": 0.002},
        "sparse": {"generations": given.generations},
        "targets": {"tail_below": 40, "head_above": 120},
        "classifier": {"size": 64, "steps": given.verifier_steps},
    }  # fmt: skip
    return configs.parse(tree)


def networks(run: RunFolder[configs.RunConfig], cohort: Cohort, given: argparse.Namespace) -> list[Classifier]:
    """Image classifiers as those of `medlt.recipes._localise`: all steps, the last weights."""
    train, val = (cohort.training_set(part, 64) for part in (cohort.train, cohort.val))
    shared: dict[str, Any] = {"steps": given.steps, "evaluate_every": given.steps, "patience": 1}
    return [
        fit_classifier(train, val, runtime=run.runtime.seeded("localise", k), store=run.store, **shared)
        for k in range(given.networks)
    ]


def stages_of(run: RunFolder[configs.RunConfig], cohort: Cohort, given: argparse.Namespace) -> dict[str, Localise]:
    """Every stage, by its name in the tables."""
    patients = cohort.manifest.rows["patient_id"].astype(str).to_dict()
    train, val = (list(map(str, part.rows.index)) for part in (cohort.train, cohort.val))

    def images(uids: Any) -> torch.Tensor:
        return cohort.images(cohort.manifest, 64, uids)

    contents = digest(cohort.named(cohort.train), cohort.named(cohort.val))
    poses = collection_poses(images, train, val, contents=contents, store=run.store)
    square = PositionPrior(cohort.regions, frozenset(train), patients, CELLS)
    prior = replace(square, poses=poses)
    nets = networks(run, cohort, given)
    one, all_of_them = (ImageMap(part, images, cohort.findings, CELLS) for part in (nets[:1], nets))
    stages: dict[str, Localise] = {"one network": one, f"image: {len(nets)} networks": all_of_them}
    return stages | {
        "prior alone, in the square image": square,
        "prior alone, registered": prior,
        "image x registered prior": AtUsualPlace(all_of_them, prior),
        **code(run, cohort, given),
    }


def code(run: RunFolder[configs.RunConfig], cohort: Cohort, given: argparse.Namespace) -> dict[str, Localise]:
    """The maps of the code as iterated learning leaves it, and of a converged classifier."""
    if not given.code:
        return {}
    learnt, method = learn(run, cohort), run.config.method
    assert isinstance(method, configs.Fusion)
    coder = learn_sparse_code(run, cohort, learnt.latents, None)
    both = {"early stop": coder, "converged": converged_coder(run, learnt, method.localise, coder)}
    return {
        f"code, {name}": CodeMap(CodeExplainer(one, learnt.latents, method.cam), cohort.findings, CELLS)
        for name, one in both.items()
    }


def tail_rows(cohort: Cohort) -> dict[str, list[str]]:
    """Tail finding -> the uids of its train positives."""
    rows = cohort.train.rows
    return {name: sorted(map(str, rows.index[rows[name] == 1])) for name in cohort.tail}


def score(stages: dict[str, Localise], cohort: Cohort, seed: int) -> list[str]:
    """One line a stage: pixel AUROC of the mean and of each tail finding, pointing game, and the top 20 %."""
    tail, patients = tail_rows(cohort), cohort.train.rows["patient_id"].astype(str)
    lines = ["| map | mean pixel AUROC | " + " | ".join(tail) + " | pointing game | lesion in the top 20 % |"]
    lines += ["|---|" + "---:|" * (len(tail) + 3)]
    for name, stage in stages.items():
        values = {
            finding: measures(stage(uids, finding).numpy(), cohort.regions.masks(uids, finding, CELLS).numpy())
            for finding, uids in tail.items()
        }
        groups = {
            key: [(values[f][key], patients[tail[f]].tolist()) for f in tail] for key in ("auroc", "pointing", "top")
        }
        cells = [_interval(*macro_interval(group, DRAWS, numpy_generator(seed, "score"))) for group in groups.values()]
        each = [f"{np.nanmean(values[f]['auroc']):.2f}" for f in tail]
        lines.append("| " + " | ".join([name, cells[0], *each, *cells[1:]]) + " |")
        logging.warning("%s", lines[-1])
    return lines


def _interval(value: float, seen: Any) -> str:
    return f"{value:.3f} [{seen.low:.3f}, {seen.high:.3f}]"


def fused(stages: dict[str, Localise], cohort: Cohort, given: argparse.Namespace) -> list[str]:
    """One line a stage: what T takes of the lesions, and the label's mass; `uses` areas are drawn for each tail image.

    Maps are measured on train and validation rows, as in a run; no region calibrates maps of its own patient.
    """
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    patients = cohort.manifest.rows["patient_id"].astype(str)
    both = [str(uid) for part in (cohort.train, cohort.val) for uid in part.rows.index]
    pairs = [(uid, finding) for finding, uids in tail_rows(cohort).items() for uid in uids for _ in range(given.uses)]
    uids, findings = ([pair[i] for pair in pairs] for i in (0, 1))
    area = numpy_generator(given.seed, "areas").normal(0.2, 0.05, len(pairs)).clip(0, 1)
    for name, stage in stages.items():
        measured = measure({name: stage}, cohort.regions, both, cohort.tail, patients.to_dict(),
                           lambda *key: numpy_generator(given.seed, *key))  # fmt: skip
        where = Localisation(Trust({name: stage}, CELLS), cohort.regions, measured, patients.to_dict())
        maps = where.trust.locate(uids, findings).maps
        taken = located(maps, torch.zeros(len(maps), dtype=torch.bool), area.tolist())
        label = evidence(where, "cam_mass", uids, findings, taken).mass
        lesion, mass = carried(where, uids, findings, taken), cam_share(maps, taken)
        lines.append(_line(name, np.array(findings), taken.double().mean((1, 2)).numpy(), lesion, mass, label,
                           patients[uids].tolist(), given.seed))  # fmt: skip
        logging.warning("%s", lines[-1])
    return lines


def _line(
    name: str, findings: np.ndarray, area: np.ndarray, lesion: np.ndarray, mass: np.ndarray, label: np.ndarray,
    owners: list[str], seed: int,
) -> str:  # fmt: skip
    rng = numpy_generator(seed, "carried")
    means = [_interval(*mean_interval(values, owners, DRAWS, rng)) for values in (lesion, area)]
    ranks = [_interval(*correlation_interval(one, lesion, owners, DRAWS // 8, rng)) for one in (mass, label)]
    asserted = label >= UNSURE[1]
    wrong = float((lesion[asserted] < 0.5).mean()) if asserted.any() else float("nan")
    each = ", ".join(f"{one} {lesion[findings == one].mean():.2f}" for one in dict.fromkeys(findings.tolist()))
    return "| " + " | ".join([name, means[0], each, means[1], *ranks, f"{asserted.mean():.2f}", f"{wrong:.2f}"]) + " |"


def main() -> None:
    """Both tables."""
    given = options()
    torch.set_num_threads(1)
    chosen = config(given)
    rows = check(chosen)
    with opened(chosen, lambda *_: None) as run:
        cohort = open_cohort(run, rows)
        stages = stages_of(run, cohort, given)
        lines = [*score(stages, cohort, given.seed), "", *fused(stages, cohort, given)]
        counts = ", ".join(f"{name} {len(uids)}" for name, uids in tail_rows(cohort).items())
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines += [
        "",
        f"{len(cohort.train.rows)} train rows; tail positives: {counts}. {used.ru_utime / 60:.0f} CPU minutes (parts "
        "that were trained before take none). Intervals: 95 %, over patients.",
    ]
    table("localise_phantom", lines)


if __name__ == "__main__":
    main()
