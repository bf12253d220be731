"""Sources of the synthetic images of a comparison: the run itself, or finished runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.consistency import LabelConsistency
from medlt.checks.folds import CrossFitClassifiers
from medlt.checks.separation import digest_network, parents_of, require_unseen_parents
from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation import provenance
from medlt.evaluation.arms import match_real_rows
from medlt.evaluation.sources import SourceImages, Verifiers
from medlt.recipes import augment
from medlt.recipes._checks import guidance_of
from medlt.recipes._cohort import Cohort, filed_cohort
from medlt.recipes._drawn import drawn_source
from medlt.recipes._models import train_guidance_classifier, train_verifiers
from medlt.recipes._privacy import private_fit
from medlt.recipes._setup import RunFolder, finished
from medlt.recipes._through_codec import derived, real_pixels, through_codec
from medlt.types import InputError, Progress

log = logging.getLogger(__name__)


def own_images(name: str, run: RunFolder[configs.RunConfig], filled: augment.Filled) -> SourceImages:
    """Return the images that this run made, as the source of its comparison."""
    cohort = filled.cohort
    made, results = _with_real_rows(filled.made, cohort, run.config), _table(name, run.path("checks.parquet"))
    kept = _kept(made, results)
    verifiers = _verifiers(run, cohort, filled.verifiers) if filled.verifiers.verifiers else None
    if verifiers is None and len(kept):
        kept = kept.drop(columns="fold")
    return SourceImages(
        name, kept, _labels(made), _pixels(made), verifiers, results, len(filled.plan),
        through_codec=through_codec(run, cohort, cohort), real_pixels=real_pixels(run.config),
    )  # fmt: skip


def open_sources(config: configs.EvaluateConfig, cohort: Cohort, progress: Progress) -> dict[str, SourceImages]:
    """Return every source of an experiment. Images that do not exist yet are made.

    Raises InputError for a source that does not fit the experiment.
    """
    given = config.sources
    made = {name: _source(name, one, cohort, progress) for name, one in given.items() if one.of_run}
    drawn = {name: drawn_source(name, one, config, cohort) for name, one in given.items() if one.drawn is not None}
    coded = {name: one for name, one in given.items() if one.codec_of is not None}
    return (
        made
        | drawn
        | {name: derived(name, one, made[str(one.codec_of)], cohort, config.seed) for name, one in coded.items()}
    )


def source_config(name: str, given: configs.SourceConfig) -> configs.RunConfig:
    """Return the config of a source's run. Raises InputError if there is neither a finished run nor a config for it."""
    if given.config is None:
        folder = Path(str(given.run))
        if not all((folder / file).is_file() for file in ("config.yaml", "manifest.parquet")):
            raise InputError(f"sources.{name}: {folder} is not a finished run; give a folder that `medlt augment` made")
        return configs.load_config(folder / "config.yaml").model_copy(update={"output_dir": folder})
    config = configs.load_config(given.config, given.set, folder=configs.folder_of(given.config))
    written = (config.output_dir / "config.yaml").read_text() if (config.output_dir / "config.yaml").is_file() else ""
    if written != configs.dump(config, config.output_dir) and (
        written or (config.output_dir / "manifest.parquet").is_file()
    ):
        raise InputError(
            f"sources.{name}: {config.output_dir} was made by another config; give it as `run`, or change output_dir"
        )
    return config


def _source(name: str, given: configs.SourceConfig, cohort: Cohort, progress: Progress) -> SourceImages:
    config = source_config(name, given)
    if not (config.output_dir / "manifest.parquet").is_file():
        augment.main(config, progress)
    try:
        run = finished(config.output_dir, progress, config.artifacts_dir)
    except InputError as error:
        raise InputError(f"source {name}: {error}") from None
    with run.runtime.limited():
        return _opened(name, run, filed_cohort(run), cohort)


def _opened(name: str, run: RunFolder[configs.RunConfig], own: Cohort, cohort: Cohort) -> SourceImages:
    """Return the images of a finished run. Raises InputError if they do not fit the experiment's real rows."""
    whole = Manifest.read(run.path("manifest.parquet"))
    made = whole.where(whole.rows["synthetic"] if "synthetic" in whole.rows else pd.Series(False, whole.rows.index))
    results, planned = (_table(name, run.path(f"{table}.parquet")) for table in ("checks", "plan"))
    made = _with_real_rows(made, own, run.config)
    provenance.require_usable(name, made, own.train, cohort.manifest, stopped_by=own.val)
    kept = _kept(made, results)
    # a data-independent run has no verifiers; these measure its images and select none
    private = None if run.config.data_independent else private_fit(run, own)
    verifiers = train_verifiers(run, own, private)
    if not run.config.data_independent and any(isinstance(one, Classifier) and one.pace for one in verifiers.verifiers):
        log.warning("source %s: the verifiers that selected its images are missing, so they were trained again", name)
    if run.config.data_independent and len(kept):  # the fold of the real row that an image is compared with
        kept = kept.assign(fold=verifiers.fold.loc[kept["label_source"]].to_numpy())
    if len(kept):
        require_unseen_parents(kept["fold"], verifiers.seen, parents_of(kept))
    return SourceImages(
        name, kept, _labels(made), _pixels(made), _verifiers(run, own, verifiers), results, len(planned),
        _guiding(run, own, verifiers), through_codec(run, own, cohort), real_pixels(run.config),
    )  # fmt: skip


def _with_real_rows(made: Manifest, own: Cohort, config: configs.RunConfig) -> Manifest:
    """Return the images. In a data-independent run, each gets a real row of its finding, which the control repeats."""
    if not config.data_independent or made.rows.empty:
        return made
    return Manifest(made.rows.assign(label_source=match_real_rows(made.rows, own.train.rows)), made.findings, made.root)


def _kept(made: Manifest, results: pd.DataFrame) -> pd.DataFrame:
    """Return the kept images with their verifier's probability."""
    rows = made.rows
    if rows.empty:
        return rows.assign(verifier=pd.Series(dtype=float))
    verified = results[results["check"] == LabelConsistency.name].set_index("uid")["value"]
    return rows.assign(verifier=verified.reindex(rows.index), **rows[["slot", "fold"]].astype(int))


def _labels(made: Manifest) -> pd.DataFrame:
    return made.rows[list(made.findings)]


def _pixels(made: Manifest) -> Callable[[int, Sequence[str]], Tensor]:
    """Return images(size, uids). All images are decoded at the first call with a size."""
    decoded: dict[int, Tensor] = {}

    def pixels(size: int, uids: Sequence[str]) -> Tensor:
        if size not in decoded:
            decoded[size] = images(made, size)
        return decoded[size][torch.from_numpy(made.rows.index.get_indexer(list(uids)))]

    return pixels


def _verifiers(run: RunFolder[configs.RunConfig], own: Cohort, verifiers: CrossFitClassifiers) -> Verifiers:
    return Verifiers(verifiers, own.train.rows[list(own.findings)], run.config.classifier.size)


def _table(name: str, path: Path) -> pd.DataFrame:
    """Return a table of a source's run. Raises InputError if it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):
        raise InputError(f"source {name}: {path} is missing or damaged; run `medlt augment` for it again") from None


def _guiding(run: RunFolder[configs.RunConfig], own: Cohort, verifiers: CrossFitClassifiers) -> tuple[str, ...]:
    """Return the digests of the classifiers that guided the images, () for a method without one."""
    guided = any(isinstance(one, configs.LongtailGuideConfig) and one.weight for one in guidance_of(run.config.method))
    return (digest_network(train_guidance_classifier(run, own, verifiers).net),) if guided else ()
