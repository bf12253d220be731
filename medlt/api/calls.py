"""The calls of the public interface: augment, evaluate, finetune, audit. Each runs the recipe of its command.

A call imports its recipe, and with it torch and MONAI, after its settings are validated: a typo is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from medlt import config as configs
from medlt.api.collection import Collection, as_collection
from medlt.api.display import displayed
from medlt.api.experiment import arms_of, real_rows, sources_of, usual
from medlt.api.results import Audit
from medlt.api.run import Run, load
from medlt.api.settings import evaluate_config, run_config
from medlt.names import did_you_mean
from medlt.types import InputError, Progress

AUDIT_OPTIONS = ("shadow_models", "canaries", "fpr", "show_pairs", "seed", "embedding_steps", "planted", "encoder")
"""Fields of `medlt.recipes.audit.AuditOptions`; its module imports torch and MONAI."""
C = TypeVar("C", configs.RunConfig, configs.EvaluateConfig)


def augment(
    collection: Collection | str | Path, method: str | Mapping[str, Any] | None = None,
    targets: int | Mapping[str, Any] | None = None, seed: int = 0, *, model: str | Path | None = None,
    output_dir: str | Path | None = None, evaluate: bool = False, progress: bool | Progress = True, **settings: Any,
) -> Run:  # fmt: skip
    """Fill the long tail of a collection with synthetic images, and check them; returns the finished run.

    The same call continues an interrupted run, and trains nothing for a finished one. It does what `medlt augment`
    does, with the same config, which lies in RUN/config.yaml.

    Args:
        collection: a `Collection`, or the path of a manifest.parquet or of a table for `Collection.from_csv`.
        method: fusion (default), edit, noise, diffult, minority, longtail, or one of a plug-in; or a mapping with
            `kind` and the keys of the method. With `privacy` the default is noise.
        targets: train positives wanted for each tail finding, or the keys of the section `targets`. Default: 100, or
            in a small collection as many as the rarest finding that is not tail has.
        seed: decides every image, split and batch.
        model: a Stable Diffusion checkpoint to fine-tune and sample, as for `finetune`.
        output_dir: the run folder. Default: runs/METHOD-DIGEST; the digest is of the rows and of all settings.
        evaluate: also train classifiers with and without the images, for `Run.verdict`.
        progress: True shows bars or lines on stderr; or a callable (stage, done, total).
        settings: any key of a config, nested (`denoiser={"steps": 500}`) or dotted (`**{"denoiser.steps": 500}`).
            What is left out is chosen by what the collection has and the machine can do. On a CPU, a collection with
            fewer than 300 train images gets 64 px, small networks, few steps and one thread: it ends in minutes.

    Raises:
        InputError: for an unknown key, or a value or a collection that does not fit, in one line.

    Examples:
        >>> collection = medlt.Collection.from_csv("labels.csv", images="png/")
        >>> run = medlt.augment(collection, method="fusion", targets=200, seed=0)
        >>> paths = run.images("Hernia").paths
    """
    given = {"method": method, "targets": targets, "seed": seed, "output_dir": output_dir, **settings}
    config = run_config(as_collection(collection), _with_model(model, given))

    from medlt.recipes import augment as images_only
    from medlt.recipes import run as with_verdict

    return _finished((with_verdict if evaluate else images_only).main, config, progress)


def finetune(
    collection: Collection | str | Path, model: str | Path | None = None, seed: int = 0, *,
    output_dir: str | Path | None = None, progress: bool | Progress = True, **settings: Any,
) -> Run:  # fmt: skip
    """Train a generator on a collection, and make no images; returns the run, whose `export` writes the generator.

    The same call continues an interrupted training. `augment` with the same settings and output_dir goes on from it.

    Args:
        collection: as for `augment`.
        model: a Stable Diffusion 1.x or 2.x checkpoint, a folder in diffusers' format or a safetensors file, fine-tuned
            with LoRA unless `denoiser={"train": "full"}`. Default: a small model is trained from nothing.
        seed: decides the weights it starts from, and every batch.
        output_dir: the run folder. Default: runs/METHOD-DIGEST.
        progress: as for `augment`.
        settings: any key of a config, as for `augment`; the method is noise unless it is given.

    Raises:
        InputError: as `augment`.

    Examples:
        >>> run = medlt.finetune(collection, denoiser={"steps": 4000})
        >>> folder = run.export("diffusers", "generator")
    """
    given: dict[str, Any] = {"method": "noise", "seed": seed, "output_dir": output_dir, **settings}
    config = run_config(as_collection(collection), _with_model(model, given))

    from medlt.recipes import train

    return _finished(lambda config, progress: train.main(config, "denoiser", progress), config, progress)


def evaluate(
    collection: Run | Collection | str | Path,
    runs: Run | str | Path | Mapping[str, Run | str | Path] | None = None,
    arms: Mapping[str, Mapping[str, Any] | None] | None = None, seed: int = 0, *,
    output_dir: str | Path | None = None, progress: bool | Progress = True, **settings: Any,
) -> Run:  # fmt: skip
    """Measure whether synthetic images help a classifier of the tail; returns a run whose `verdict` says so.

    Every arm is trained alike with several seeds. One is chosen on validation data and tested once, against an arm that
    repeats real images as often. The same call continues an interrupted experiment. It does what `medlt evaluate` does.

    Args:
        collection: a finished `Run` or its folder, whose real rows are taken and whose images are tested; or a
            collection, as for `augment`.
        runs: the run whose images are tested, or several by name.
        arms: rows of the experiment by name, as in a config, such as `{"focal": {"loss": "focal"}, "half": {"source":
            "fusion", "synthetic_ratio": 0.5}}`. Default: one for each of `runs`. The arm `real` is always there.
        seed: decides every training.
        output_dir: the folder. Default: runs/verdict-DIGEST.
        progress: as for `augment`.
        settings: any key of an experiment's config, as for `augment`. `evaluation={"workers": 4}` trains arms in
            processes, for a script with `if __name__ == "__main__":`. On a CPU, fewer than 300 train images get a brief
            comparison, enough to try; for a verdict give more: `evaluation={"seeds": 5, "steps": "plateau"}`.

    Raises:
        InputError: without runs and arms, for a run that is not finished, and as `augment`.

    Examples:
        >>> experiment = medlt.evaluate(run, evaluation={"seeds": 5})
        >>> sentence = str(experiment.verdict)
    """
    if "sources" in settings:
        raise InputError("sources: give finished runs as runs={NAME: run}")
    sources, rows = sources_of(collection, runs), real_rows(collection)
    given = {"seed": seed, "output_dir": output_dir, **settings, "arms": arms_of(sources, arms)}
    config = evaluate_config(rows, usual(rows, sources, settings.get("device")), given)

    from medlt.recipes import evaluate as recipe

    return _finished(recipe.main, config, progress)


def audit(run: Run | str | Path, *, progress: bool | Progress = True, **options: Any) -> Audit:
    """Measure what a finished run reveals of its patients: near copies, membership, re-identification.

    It does what `medlt audit` does, and writes RUN/audit.json, its tables, the cards and the report again.

    Args:
        run: a finished `Run`, or its folder.
        progress: as for `augment`.
        options: shadow_models (0), canaries (0), fpr (0.01), show_pairs (False), seed (0), embedding_steps (250),
            planted (100), encoder (None, or the folder of a public vision model).

    Raises:
        InputError: for an unknown option, and for a run without synthetic images or without held-out patients.

    Examples:
        >>> audit = medlt.audit(run)
        >>> conclusion = str(audit)
    """
    if unknown := [name for name in options if name not in AUDIT_OPTIONS]:
        close = did_you_mean(unknown[0], AUDIT_OPTIONS) or ";"
        raise InputError(f"audit has no option {unknown[0]!r}{close} use {', '.join(AUDIT_OPTIONS)}")
    folder = run.folder if isinstance(run, Run) else load(run).folder

    from medlt.recipes import audit as recipe

    with displayed(progress) as callback:
        return Audit.of(recipe.main(folder, recipe.AuditOptions(**options), callback))


def _with_model(model: str | Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return settings with a checkpoint in the section denoiser. Raises InputError where they name another one."""
    if model is None:
        return given
    section = given.get("denoiser", {})
    if {"denoiser.kind", "denoiser.model"} & {*given} or {"kind", "model"} & {*section}:
        raise InputError("model is given twice; give model=..., or denoiser={'kind': ..., 'model': ...}")
    checkpoint = {"kind": "folder", "path": str(Path(model).expanduser())}
    return {**given, "denoiser": {"kind": "stable-diffusion", "model": checkpoint, **section}}


def _finished(recipe: Callable[[C, Progress], Path], config: C, progress: bool | Progress) -> Run:
    """Run a recipe, and report its folder first and images that could not be read last."""
    with displayed(progress) as callback:
        callback.note(f"run folder: {config.output_dir}")
        run = load(recipe(config, callback))
        if failed := run.record.get("counts", {}).get("failed", 0):
            callback.note(f"{failed} images could not be read; see {run.folder / 'failures.csv'}")
    return run
