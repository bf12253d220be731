"""Does it help? Real, duplicated and synthetic arms of one classifier, their differences, and the word."""

from __future__ import annotations

from medlt.classify.train import TrainingSet
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation.arms import CONTROL, REAL, Arm, Arms, duplicated, lent
from medlt.evaluation.verdict import compare, decide, score_table
from medlt.files import write_json, write_table
from medlt.runs import Run
from pipelines import arm_training
from pipelines.arm_training import Rows
from pipelines.judging import classifier_options
from pipelines.stages import Collection, Progress

NOTHING = "no evidence: no synthetic image passed the checks, so there was nothing to compare."


def _added(run: Run, made: Manifest) -> TrainingSet:
    """The synthetic rows as the classifier sees them."""
    weights = made.rows["weight"].to_numpy("float32")
    return TrainingSet(images(made, run.config.classifier.size), made.labels(), weights, tuple(made.rows.index))


def evaluate(run: Run, real: Collection, made: Manifest, method: str, progress: Progress) -> None:
    """Train all arms, write scores.parquet, differences.parquet and verdict.json."""
    if made.rows.empty:
        write_json(run.path("verdict.json"), {"verdict": "no evidence", "sentence": NOTHING, "comparison": None})
        return
    config, rows = run.config.evaluation, made.rows
    if run.config.blind:
        rows = rows.assign(like=lent(rows, real.train.rows))
    train, val, test = (real.training_set(split, run.config.classifier.size) for split in ("train", "val", "test"))
    settings = classifier_options(run.config) | {"mix": config.mix}
    whole = [
        Arm(REAL, "real", settings),
        Arm(CONTROL, "control", settings, duplicated(rows, train, config.weight), REAL),
        Arm(method, "synthetic", settings, _added(run, made), CONTROL),
    ]
    shared = Rows(train, val, test, run.path("stages", "arms"), run.config.threads, "cpu")
    seeds = [run.config.seed + seed for seed in range(config.seeds)]
    trained = arm_training.train(shared, whole, seeds, 1, progress)
    patients = [str(patient) for patient in real.manifest.split("test").rows["patient_id"]]
    arms = Arms(trained.test, test.labels, patients, real.manifest.findings, trained.val, val.labels)
    pairs = [(method, CONTROL), (method, REAL), (CONTROL, REAL)]
    differences = compare(arms, pairs, real.members(), draws=config.draws, seed=run.config.seed)
    write_table(run.path("scores.parquet"), score_table(arms, real.members()))
    write_table(run.path("differences.parquet"), differences)
    write_json(run.path("verdict.json"), decide(differences, arms, method, CONTROL))
