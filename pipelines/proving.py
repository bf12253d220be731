"""Does it help? Real, duplicated and synthetic arms of one classifier, their differences, and the word."""

from __future__ import annotations

import numpy as np
import torch

from medlt.classify.train import TrainingSet, fit
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation.arms import CONTROL, Arms, duplicated, train
from medlt.evaluation.verdict import compare, decide, score_table
from medlt.files import write_json, write_table
from medlt.runs import Run
from pipelines.learning import classifier_options
from pipelines.stages import Collection, Progress

NOTHING = "no evidence: no synthetic image passed the checks, so there was nothing to compare."


def _added(run: Run, made: Manifest) -> TrainingSet:
    """The synthetic rows as the classifier sees them."""
    weights = made.rows["weight"].to_numpy(np.float32)
    return TrainingSet(images(made, run.config.classifier.size), made.labels(), weights, tuple(made.rows.index))


def evaluate(run: Run, real: Collection, made: Manifest, method: str, progress: Progress) -> None:
    """Train all arms, write scores.parquet, differences.parquet and verdict.json."""
    if made.rows.empty:
        write_json(run.path("verdict.json"), {"verdict": "no evidence", "sentence": NOTHING, "comparison": None})
        return
    config, folder = run.config.evaluation, run.path("stages", "arms")
    rows, val, test = (real.training_set(split, run.config.classifier.size) for split in ("train", "val", "test"))
    arms = {"real": None, CONTROL: duplicated(made.rows, rows, config.weight), method: _added(run, made)}

    def one(added: TrainingSet | None, seed: int, name: str) -> np.ndarray:
        options = classifier_options(run.config) | {"mix": config.mix, "seed": run.config.seed + seed}
        title = f"{name}, seed {seed}"
        judge = fit(rows, val, added=added, folder=folder, name=title, progress=progress, **options)
        with torch.no_grad():
            return judge.predict(test.images).numpy()

    scores = train(arms, range(config.seeds), one)
    patients = [str(patient) for patient in real.manifest.split("test").rows["patient_id"]]
    result = Arms(scores, test.labels, patients, real.manifest.findings)
    pairs = [(method, CONTROL), (method, "real"), (CONTROL, "real")]
    differences = compare(result, pairs, real.members(), draws=config.draws, seed=run.config.seed)
    write_table(run.path("scores.parquet"), score_table(result, real.members()))
    write_table(run.path("differences.parquet"), differences)
    write_json(run.path("verdict.json"), decide(differences, result, method))
