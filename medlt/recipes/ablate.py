"""Ablation of latent fusion: vary one setting of a base config at a time, and measure each variant.

All variants share data, codec, latents, denoiser and verifiers. A sparse code is learnt once for each of its settings
and seeds. A code with fewer generations is a prefix of one with more (`medlt.sparse.iterated`), so one training gives
all numbers of generations. If `sparse.generations` is varied, each value above 1 also gets its control of equal
compute, factor "one_generation": one generation with the epochs of all of them, and no early stop. Every variant uses
the plan rows of the base, with the same parents, thresholds and noise, unless it varies one of these.

    variants/NAME.parquet, NAME.json    images and figures of one variant; an existing one is not made again
    ablation.parquet, .csv, .md         factor, value, is_base, seed and the figures (`medlt.evaluation.variants`)

`kid` compares all images of a variant with validation images that have a tail finding, in the features of verifiers
that were not trained on the parents, so a setting may be chosen by it. The first row, factor "real", has the figures of
real train images with a tail finding.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medlt import config as configs
from medlt.checks.consistency import LabelConsistency, best_of, thresholds
from medlt.checks.target_label import TargetLabelCheck
from medlt.classify.train import Classifier
from medlt.config.ablation import Ablation
from medlt.csv_text import as_csv
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.sampler import last_steps
from medlt.evaluation.design import ArmSpec
from medlt.evaluation.variants import as_markdown, difference_to_base, kid_by_fold, summarise
from medlt.files import digest, write_json, write_table, write_text
from medlt.recipes._checks import check_guides
from medlt.recipes._cohort import open_cohort
from medlt.recipes._compare import compare
from medlt.recipes._denoiser import train_denoiser
from medlt.recipes._learn import learn
from medlt.recipes._localise import localise
from medlt.recipes._methods import build_guides, latent_fusion
from medlt.recipes._models import Learnt, iterate_on
from medlt.recipes._publish import publish
from medlt.recipes._quality import build_checks
from medlt.recipes._setup import RunFolder, opened
from medlt.recipes._shards import joined, write_best
from medlt.recipes._sources import own_images
from medlt.recipes.augment import Filled, check
from medlt.rows import Rows
from medlt.sparse.iterated import Iterated
from medlt.training.runtime import silent
from medlt.types import Batch, Check, CheckResult, InputError, Progress
from medlt.writer import DatasetWriter

CODE_METRICS = ("mean_max_probability", "tokens_used", "agreement", "reconstruction_l1", "probe_ap", "val_macro_ap")
ARM, GENERATIONS = "fusion", "generations"


@dataclass(frozen=True)
class Variant:
    """A base config with one changed setting. `seed` is added to the seeds of sparse code and plan."""

    factor: str
    value: Any
    config: configs.RunConfig
    seed: int
    is_base: bool

    @property
    def method(self) -> configs.Fusion:
        """The settings of latent fusion."""
        if not isinstance(self.config.method, configs.Fusion):
            raise InputError(f"ablation: varies method fusion, not {self.config.method.kind}; write method: fusion")
        return self.config.method

    @cached_property
    def name(self) -> str:
        """A name that is the same for equal variants, such as the base and its own value of a factor."""
        method = self.method.model_dump()
        method["strength"] = last_steps(
            self.method.strength, self.method.num_inference_steps
        )  # the number of steps decides the images
        return f"{digest(method, self.config.sparse.model_dump())}-{self.seed}"


def variants(base: configs.RunConfig, wanted: Ablation) -> list[Variant]:
    """Return the base, every value of every factor, and the controls, for every seed.

    Raises InputError for an invalid value.
    """
    made = []
    for seed in range(wanted.seeds):
        own = Variant("base", "", base, seed, True)
        made.append(own)
        for key, values in wanted.vary.items():
            *outer, name = key.split(".")
            for value in values:
                tree = base.model_dump(mode="json")
                section = reduce(lambda part, one: part.setdefault(one, {}), outer, tree)
                section[name] = value
                changed = configs.parse(tree, f"ablation of {key}")
                check_guides(changed)
                one = Variant(name, value, changed, seed, False)
                made.append(Variant(name, value, changed, seed, one.name == own.name))
        made += [control(one) for one in made if (one.factor, one.seed) == (GENERATIONS, seed) and one.value > 1]
    return made


def control(one: Variant) -> Variant:
    """Return the control of a number of generations: one generation with the epochs of all of them."""
    sparse = one.config.sparse
    config = one.config.model_copy(update={"sparse": sparse.in_one_generation()})
    return Variant("one_generation", f"{sparse.epochs} epochs, as {one.value}", config, one.seed, False)


def main(config: configs.RunConfig, progress: Progress = silent) -> Path:
    """Run or resume the ablation, and return the run folder. A later call may vary more in the same folder.

    Raises InputError for an invalid value, before anything is written.
    """
    assert config.ablation is not None  # callers check it
    base = config.model_copy(update={"ablation": None})
    wanted, rows = variants(base, config.ablation), check(base)
    with opened(base, progress) as run:
        cohort = open_cohort(run, rows)
        learnt = learn(run, cohort)
        backbone = train_denoiser(run, cohort, learnt.latents, learnt.private)
        checks = build_checks(run, cohort, learnt.verifiers)
        runner = AblationRunner(run, learnt, backbone, checks, config.ablation.downstream)
        with run.stage("ablation"):
            run.runtime.progress("variants", 0, len(wanted))
            for done, one in enumerate(wanted):
                runner.finish(one)
                run.runtime.progress("variants", done + 1, len(wanted))
            real = {"factor": "real", "value": "train", "is_base": False, "seed": 0, **runner.reference()}
            table = pd.concat([pd.DataFrame([real]), _table(run, wanted)], ignore_index=True)
        write_table(run.path("ablation.parquet"), table)
        write_text(run.path("ablation.csv"), as_csv(table))
        write_text(run.path("ablation.md"), as_markdown(table))
    return run.folder


@dataclass(frozen=True)
class AblationRunner:
    """The shared parts of all variants; it makes and measures each of them."""

    run: RunFolder[configs.RunConfig]
    learnt: Learnt
    backbone: Backbone
    checks: tuple[Check, ...]
    downstream: bool = False

    @property
    def verifiers(self) -> list[Classifier]:
        """The verifiers that have features."""
        return [one for one in self.learnt.verifiers.verifiers if isinstance(one, Classifier)]

    def finish(self, one: Variant) -> None:
        """Write the figures of a variant and of its images, unless they exist; `downstream` adds those of its arms."""
        place = _place(self.run, one, "json")
        if not place.exists() or (self.downstream and "tail_ap_difference" not in json.loads(place.read_text())):
            images, figures = self.figures(one)
            write_table(_place(self.run, one, "parquet"), images)
            write_json(place, {k: None if math.isnan(v) else v for k, v in figures.items()})

    def code(self, one: Variant) -> Iterated:
        """Learn or load the sparse code of a variant."""
        runtime = replace(self.run.runtime.at("fp32"), seed=self.run.config.seed + one.seed)
        options = one.config.sparse.model_dump()
        return iterate_on(self.run, self.learnt.cohort, self.learnt.latents, runtime, **options)

    def make(self, one: Variant, code: Iterated) -> tuple[Batch, list[CheckResult]]:
        """Make all images of a variant and check them; the results of best_of come last."""
        guides, _ = build_guides(self.run, self.learnt, one.method.guidance, self.backbone)
        located = localise(self.run, self.learnt, one.method, code.coder)
        method = latent_fusion(self.run, self.learnt, one.method, located, self.backbone, guides)
        plan = method.plan(self.learnt.cohort.shortfall(), self.run.config.seed + one.seed)
        batch = joined(list(method.run(plan[plan["candidate"] < self.run.config.targets.num_candidates])))
        results = [result for check in self.checks for result in check(batch)]
        return batch, [*results, *best_of(batch.rows, results)]

    def figures(self, one: Variant) -> tuple[pd.DataFrame, dict[str, float]]:
        """Return the images of a variant, columns as in `medlt.evaluation.variants.IMAGES`, and its figures."""
        code, start = self.code(one), time.perf_counter()
        batch, results = self.make(one, code)
        seconds, images = time.perf_counter() - start, _images(batch, results)
        kid, error = self.kid(batch.images, torch.tensor(batch.rows["fold"].to_numpy(np.int64, copy=True)))
        row = code.chosen
        known = {name: float(row[name]) for name in CODE_METRICS} | {"kid": kid, "kid_sd": error}
        compared = self.compare_arms(one, batch, results) if self.downstream else {}
        return images, summarise(images) | known | compared | {"seconds": round(seconds, 2)}

    def held_out(self) -> list[np.ndarray]:
        """Return each verifier's features [N,D] of the validation images that have a tail finding."""
        cohort, size = self.learnt.cohort, self.run.config.classifier.size
        val = cohort.training_set(cohort.val, size)
        tail = [cohort.findings.index(name) for name in cohort.tail]
        images = val.images[torch.from_numpy((val.labels[:, tail] == 1).any(1))]
        return [verifier.features(images).numpy() for verifier in self.verifiers]

    def kid(self, images: Rows, fold: torch.Tensor) -> tuple[float, float]:
        """Return the KID of images [N,1,H,W], each in the features of the verifier of its fold [N], to `held_out`."""
        embedded = [verifier.features(images[fold == k]).numpy() for k, verifier in enumerate(self.verifiers)]
        return kid_by_fold(list(zip(self.held_out(), embedded, strict=True)))

    def reference(self) -> dict[str, float]:
        """Return the figures of real train images of the tail, by verifiers that were not trained on them."""
        cohort, verifiers = self.learnt.cohort, self.learnt.verifiers
        rows, findings = cohort.train.rows, list(cohort.tail)
        positive, held_out = rows[findings] == 1, verifiers.held_out[findings]
        limits = thresholds(held_out, rows[findings], self.run.config.checks.verifier_quantile)
        table = pd.DataFrame(
            {"verifier": held_out.where(positive).stack(), "passed": held_out.ge(limits).stack()}
        ).dropna()
        parent = table.index.get_level_values(0).to_numpy()
        unknown = dict.fromkeys(("mask_share", "tail_mass", "lesion_carried"), math.nan)
        train = cohort.training_set(cohort.train, self.run.config.classifier.size)
        chosen = positive.any(axis=1).to_numpy()
        fold = torch.tensor(np.where(chosen, verifiers.fold.loc[rows.index].to_numpy(), -1))
        kid, error = self.kid(train.images, fold)
        return summarise(table.assign(tail_parent=parent, labelled=1.0, kept=False, **unknown)) | {
            "kid": kid,
            "kid_sd": error,
        }

    def compare_arms(self, one: Variant, batch: Batch, results: list[CheckResult]) -> dict[str, float]:
        """Train the arms of a variant, and return its tail macro AP minus that of the duplicated control."""
        base, cohort = self.run, self.learnt.cohort
        home = base.path("variants", one.name)
        run = RunFolder(home, one.config.model_copy(update={"output_dir": home}), base.runtime, base.store)
        models = digest(one.name, batch.rows.index.tolist())
        writer = DatasetWriter(home, models=models, run_id=models)
        if not writer.has(batch.rows):
            write_best(writer, batch.rows, batch, results)
        published = publish(run, cohort, batch.rows, writer, models)
        filled = Filled(cohort, self.learnt.verifiers, batch.rows, published)
        conclusion = compare(run, cohort, {ARM: ArmSpec(source=ARM)}, {ARM: own_images(ARM, run, filled)})
        numbers = dict(conclusion.record.get("comparison") or {})
        values = {name: numbers.get(name) for name in ("difference", "low", "high")}
        return {f"tail_ap_{name}": float("nan") if value is None else value for name, value in values.items()}


def _place(run: RunFolder[configs.RunConfig], one: Variant, kind: str) -> Path:
    return run.path("variants", f"{one.name}.{kind}")


def _row(run: RunFolder[configs.RunConfig], one: Variant, base: pd.DataFrame) -> dict[str, Any]:
    figures = json.loads(_place(run, one, "json").read_text())
    images = pd.read_parquet(_place(run, one, "parquet"))
    known = {name: math.nan if value is None else value for name, value in figures.items()}
    named = {"factor": one.factor, "value": str(one.value), "is_base": one.is_base, "seed": one.seed}
    return named | known | difference_to_base(images, base)


def _table(run: RunFolder[configs.RunConfig], wanted: list[Variant]) -> pd.DataFrame:
    bases = {one.seed: pd.read_parquet(_place(run, one, "parquet")) for one in wanted if one.factor == "base"}
    table = pd.DataFrame([_row(run, one, bases[one.seed]) for one in wanted])
    order = {name: n for n, name in enumerate(table["factor"].unique())}
    return table.sort_values("factor", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def kept_uids(results: list[CheckResult]) -> set[str]:
    """Return the uids of the best image of each slot."""
    return {result.uid for result in results if result.check == "best_of" and result.passed}


def _images(batch: Batch, results: list[CheckResult]) -> pd.DataFrame:
    table = pd.DataFrame([vars(result) for result in results]).set_index(["check", "uid"])
    verifier, label = table.loc[LabelConsistency.name], table.loc[TargetLabelCheck.name]
    return batch.rows[["finding", "tail_parent", "mask_share", "tail_mass", "lesion_carried"]].assign(
        verifier=verifier["value"],
        passed=verifier["passed"],
        labelled=label["passed"],
        kept=batch.rows.index.isin(kept_uids(results)),
    )
