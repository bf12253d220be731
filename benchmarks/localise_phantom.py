"""How well every stage of localisation finds the lesions of drawn patients, and what fused images carry of them.

    python benchmarks/localise_phantom.py --patients 640 --steps 1200 --seed 71

A fresh cohort; the parts are those of a run (`medlt.recipes`), but no image is denoised: what an image carries is
decided before. The masks of the drawings score, and give the usual place of a finding by other patients; no stage reads
those of its own patient. The first table is of the train rows with a tail finding, whose maps fusion uses. The second
is of fused rows, planned as in a run: the label's mass is E of `medlt.synthesis.labels`.
"""

from __future__ import annotations

import argparse
import logging
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import table
from torch import Tensor

from medlt import config as configs
from medlt.localise.code_explainer import CodeExplainer
from medlt.localise.maps import CodeMap
from medlt.metrics.localisation import correlation_interval, macro_interval, mean_interval, measures
from medlt.recipes._cohort import open_cohort
from medlt.recipes._localise import Stages, converged_coder, localise
from medlt.recipes._methods import latent_fusion
from medlt.recipes._models import Learnt, learn_sparse_code
from medlt.recipes._setup import RunFolder, opened
from medlt.recipes.augment import check, learn
from medlt.rng import numpy_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.testing import label_backbone
from medlt.types import Localise

DRAWS = 2000
COLUMNS = (
    "fusion", "lesion carried", "by finding", "area", "map's mass and carried, rank r",
    "label's mass and carried, rank r", "asserted", "of these, carry < 0.5", "heads",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "before: tail_first, code, early stop": {
        "rule": "tail_first", "localise": {"order": ["code"], "code_steps": 0}, "neighbours": 3,
    },
    "tail_only, code, early stop": {"localise": {"order": ["code"], "code_steps": 0}},
    "tail_only, code, converged": {"localise": {"order": ["code"]}},
    "tail_only, image": {"localise": {"order": ["image"]}},
    "tail_only, prior alone": {"localise": {"order": ["prior", "code"]}},
    "tail_only, best (default without masks)": {"localise": {"order": ["best", "image", "code"]}},
}  # fmt: skip


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    sizes = {"patients": 640, "steps": 1200, "seed": 71, "networks": 5, "images": 120, "generations": 2}
    for name, value in (sizes | {"codec-steps": 400, "verifier-steps": 400}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--home", type=Path, default=Path("runs/localise_phantom"))
    return parser.parse_args()


def config(given: argparse.Namespace, **method: Any) -> configs.RunConfig:
    """The config of a variant; all share their trained parts."""
    places = {"networks": given.networks, "steps": given.steps, **method.pop("localise", {})}
    tree = {
        "output_dir": str(given.home / "run"), "artifacts_dir": str(given.home / "artifacts"), "seed": given.seed,
        "size": 64, "threads": 1,
        "method": {"kind": "fusion", "labels": "cam_mass", "localise": places, **method},
        "data": {"kind": "phantom", "patients": given.patients, "size": 128, "imbalance": 20,
                 "shares": [0.7, 0.25, 0.05]},
        "codec": {"kind": "train", "width": 32, "steps": given.codec_steps, "learning_rate": 0.002},
        "sparse": {"generations": given.generations},
        "targets": {"tail_below": 40, "head_above": 120, "count": 1000, "max_per_finding": given.images},
        "classifier": {"size": 64, "steps": given.verifier_steps},
    }  # fmt: skip
    return configs.parse(tree)


def stages_of(
    run: RunFolder[configs.RunConfig], learnt: Learnt, coder: SimplicialCoder, given: argparse.Namespace
) -> dict[str, Localise]:
    """Every stage, by its name in the table."""
    chosen, cohort = run.config.method, learnt.cohort
    assert isinstance(chosen, configs.Fusion)
    own = Stages(run, learnt, chosen, converged_coder(run, learnt, chosen.localise, coder))
    others = chosen.model_copy(update={"localise": chosen.localise.model_copy(update={"networks": 0})})
    early = CodeExplainer(coder, learnt.latents, chosen.cam)
    return {
        "code, early stop": CodeMap(early, cohort.findings, own.size),
        "code, converged": own.code,
        f"image, {given.networks} networks": own.image,
        f"image, 2 verifiers of {given.verifier_steps} steps": Stages(run, learnt, others, own.coder).image,
        "prior alone": own.prior,
        "image x prior": own.image_prior,
    }


def score(stages: dict[str, Localise], learnt: Learnt, seed: int) -> list[str]:
    """One line a stage: pixel AUROC of the mean and of each tail finding, pointing game, and the top 20 %."""
    cohort, tail = learnt.cohort, learnt.cohort.tail
    rows = cohort.train.rows
    lines = ["| map | mean pixel AUROC | " + " | ".join(tail) + " | pointing game | lesion in the top 20 % |"]
    lines += ["|---|" + "---:|" * (len(tail) + 3)]
    for name, stage in stages.items():
        found, owners = {}, {}
        for finding in tail:
            uids = [str(uid) for uid in rows.index[rows[finding] == 1]]
            maps = stage(uids, finding)
            found[finding] = measures(maps.numpy(), cohort.regions.masks(uids, finding, tuple(maps.shape[1:])).numpy())
            owners[finding] = rows.loc[uids, "patient_id"].astype(str).tolist()
        cells = [_macro([(found[f][key], owners[f]) for f in tail], seed) for key in ("auroc", "pointing", "top")]
        each = [f"{np.nanmean(found[f]['auroc']):.2f}" for f in tail]
        lines.append(f"| {name} | {cells[0]} | {' | '.join(each)} | {cells[1]} | {cells[2]} |")
        logging.warning("%s", lines[-1])
    return lines


def _macro(groups: list[tuple[np.ndarray, list[str]]], seed: int) -> str:
    value, seen = macro_interval(groups, DRAWS, numpy_generator(seed, "score"))
    return f"{value:.3f} [{seen.low:.3f}, {seen.high:.3f}]"


def fused(run: RunFolder[configs.RunConfig], learnt: Learnt, coder: SimplicialCoder) -> pd.DataFrame:
    """The rows of a variant's plan, with what each image would carry and its label of the target finding."""
    chosen = run.config.method
    assert isinstance(chosen, configs.Fusion)
    still = label_backbone(lambda x, t, condition: x, len(learnt.cohort.findings))
    method = latent_fusion(run, learnt, chosen, localise(run, learnt, chosen, coder), still)

    def blank(z: Tensor) -> Tensor:
        return torch.zeros(len(z), 1, 8, 8)

    method = replace(method, decode=blank, guidance_scale=1.0)
    plan = method.plan(learnt.cohort.shortfall(), run.config.seed)
    parts = list(method.run(plan[plan["candidate"] == 0]))
    rows = pd.concat([part.rows for part in parts])
    labels = pd.concat([part.labels for part in parts])
    return rows.assign(label=[labels.at[uid, finding] for uid, finding in rows["finding"].items()])


def carried(name: str, rows: pd.DataFrame, patients: pd.Series, seed: int) -> str:
    """One line of the second table."""
    owners, rng = patients.loc[rows["tail_parent"]].astype(str).tolist(), numpy_generator(seed, "carried")
    mean = {key: mean_interval(rows[key].to_numpy(), owners, DRAWS, rng) for key in ("lesion_carried", "mask_share")}
    asserted = rows[rows["label"] >= 0.8]
    cells = [f"{value:.2f} [{seen.low:.2f}, {seen.high:.2f}]" for value, seen in mean.values()]
    for key in ("tail_mass", "label_mass"):
        pair = rows[key].to_numpy(float), rows["lesion_carried"].to_numpy()
        value, seen = correlation_interval(*pair, owners, DRAWS // 4, rng)
        cells.append(f"{value:.2f} [{seen.low:.2f}, {seen.high:.2f}]")
    wrong = float((asserted["lesion_carried"] < 0.5).mean()) if len(asserted) else float("nan")
    each = rows.groupby("finding")["lesion_carried"].mean()
    kinds = ", ".join(f"{finding} {value:.2f}" for finding, value in each.items())
    heads = f"{rows['head_parent'].nunique()} of {len(rows)}"
    last = [f"{len(asserted) / len(rows):.2f}", f"{wrong:.2f}", heads]
    return "| " + " | ".join([name, cells[0], kinds, *cells[1:], *last]) + " |"


def main() -> None:
    """Both tables."""
    given = options()
    torch.set_num_threads(1)
    first = config(given, localise={"order": ["best", "image", "code"]})
    rows = check(first)
    with opened(first, lambda *_: None) as run:
        cohort = open_cohort(run, rows)
        learnt = learn(run, cohort)
        coder = learn_sparse_code(run, cohort, learnt.latents, None)
        lines = score(stages_of(run, learnt, coder, given), learnt, given.seed)
        lines += ["", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        for name, method in VARIANTS.items():
            variant = replace(run, config=config(given, **method))
            lines.append(carried(name, fused(variant, learnt, coder), cohort.train.rows["patient_id"], given.seed))
            logging.warning("%s", lines[-1])
        counts = {name: int((cohort.train.rows[name] == 1).sum()) for name in cohort.tail}
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines += [
        "",
        f"{len(cohort.train.rows)} train rows, tail positives {counts}; {used.ru_utime / 60:.0f} CPU minutes, "
        "(parts that were trained before take none). Intervals: 95 %, over patients.",
    ]
    table("localise_phantom", lines)


if __name__ == "__main__":
    main()
