"""Truth of the phantom through a whole run: its table, a changed mask, and a private run that keeps none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medlt.config import RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.data.regions import Regions
from medlt.evaluation.localisation import COLUMNS, IMAGE_METRICS
from medlt.files import REAL_ROWS
from medlt.localise.measure import Localisation
from medlt.localise.trust import Trust
from medlt.metrics.localisation import MEASURES
from medlt.recipes._cohort import filed_cohort, open_cohort
from medlt.recipes._localisation import CODE, PRIOR, USED, scored_stages, write_localisation
from medlt.recipes._setup import finished as opened_again
from medlt.recipes._setup import opened
from medlt.recipes.augment import check
from medlt.synthesis.fusion import LatentFusion
from medlt.training.runtime import silent
from medlt.types import InputError, Localise

Tiny = Callable[[Path], RunConfig]


def test_a_run_with_truth_writes_its_table(finished: Path) -> None:
    table = pd.read_parquet(finished / "localisation.parquet")
    assert tuple(table.columns) == COLUMNS
    regions = Regions.of(Manifest.read(finished / "stages/data/manifest.parquet"))
    maps, images = table[table["rows"] != "made"], table[table["rows"] == "made"]
    assert set(maps["finding"]) == {*regions.findings, "macro"}
    assert set(maps["stage"]) == {USED, CODE, PRIOR}  # every train row has its mask, so no image network has a map
    assert set(maps["metric"]) == set(MEASURES)
    assert set(maps["rows"]) == {"train", "val"}
    assert set(images["metric"]) == set(IMAGE_METRICS)
    values = table.loc[~table["metric"].str.endswith("correlation"), ["value", "low", "high"]].stack().dropna()
    assert values.between(-1e-9, 1 + 1e-9).all()
    assert 'id="localisation"' in (finished / "report.html").read_text()


def test_a_method_with_maps_of_its_own_is_scored_by_them_and_never_by_given_masks(
    finished: Path, method_of: Callable[[RunConfig], LatentFusion]
) -> None:
    """Without the masks of its train rows, fusion falls back on maps."""
    run = opened_again(finished, silent)
    cohort, method = filed_cohort(run), method_of(run.config)
    patients = {str(uid): str(owner) for uid, owner in cohort.manifest.rows["patient_id"].items()}
    maps: dict[str, Localise] = {"image": lambda uids, finding: torch.ones(len(uids), 4, 4)}
    given: dict[str, Localise] = {"mask": lambda uids, finding: torch.zeros(len(uids), 4, 4), **maps}
    method.where = Localisation(Trust(given, (4, 4)))
    stages = scored_stages(cohort, method, patients)
    assert list(stages) == [USED, "image", CODE, PRIOR]
    uid = cohort.regions.known("Effusion")[0]
    assert (stages[USED]([uid], "Effusion") == 1).all()


def test_the_images_carry_what_their_given_masks_say(finished: Path) -> None:
    """Fusion takes a given mask whole, so all of the finding is carried."""
    manifest = Manifest.read(finished / "manifest.parquet")
    made = manifest.rows[manifest.rows["synthetic"]]
    table = pd.read_parquet(finished / "localisation.parquet").set_index(["finding", "metric", "stage"])
    row = table.sort_index().loc[("overall", "lesion_carried", "images")]
    assert row["value"] == pytest.approx(made["lesion_carried"].mean())
    assert row["images"] == made["lesion_carried"].notna().sum()


def test_a_changed_mask_is_told_before_anything_is_made(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    mask = sorted((run / "stages/data/phantom/masks").rglob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    with pytest.raises(InputError, match=f"1 masks changed since this run began, the first uid {mask.stem}"):
        with opened(tiny(run), silent) as again:
            open_cohort(again)


def test_a_mask_that_does_not_fit_stops_a_run_before_any_training(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(finished / "stages/data", tmp_path / "data")
    rows = Manifest.read(tmp_path / "data/manifest.parquet")
    place = tmp_path / "data/fresh.parquet"
    Manifest(rows.rows.drop(columns="mask_content"), rows.findings, rows.root).write(place)
    mask = sorted((tmp_path / "data/phantom/masks").rglob("*.png"))[0]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(mask)
    tree = {**tiny(tmp_path / "run").model_dump(mode="json"), "data": {"kind": "manifest", "path": str(place)}}
    config = parse(tree)
    with pytest.raises(InputError, match="9 x 9 pixels and its image 64 x 64"), opened(config, silent) as run:
        open_cohort(run, check(config))
    assert not (tmp_path / "run" / REAL_ROWS).exists()  # so the mask can be mended and the run started again


def test_a_private_run_keeps_no_mask(tiny: Tiny, tmp_path: Path) -> None:
    """Its rows name none, so no stage, manifest or table of the run can use or hand out one."""
    tree = tiny(tmp_path / "run").model_dump(mode="json", exclude={"evaluation"})
    config = parse({**tree, "privacy": {"epsilon": 8.0, "delta": 1e-3, "patients": 24, "findings": ["Mass"]}})
    with opened(config, silent) as run:
        cohort = open_cohort(run, check(config))
    assert cohort.regions.findings == ()
    for manifest in (cohort.manifest, Manifest.read(run.path("stages/data/manifest.parquet"))):
        assert not [name for name in manifest.rows if name.startswith(("mask_", "box_"))]


def test_a_method_without_maps_writes_nothing(finished: Path, tmp_path: Path) -> None:
    run = opened_again(finished, silent)
    cohort = filed_cohort(run)
    assert cohort.regions.findings
    (table := finished / "localisation.parquet").rename(kept := tmp_path / "kept.parquet")
    write_localisation(run, cohort, object(), Manifest.read(finished / "manifest.parquet"))
    written = table.exists()
    kept.rename(table)
    assert not written
