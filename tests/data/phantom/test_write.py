"""A folder of DICOM files: same bytes for any number of workers, resumable, and learnable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medlt.config import PhantomData
from medlt.data.dicom import read_dicom
from medlt.data.phantom import FINDINGS, cohort, render, write_phantom
from medlt.data.regions import Regions
from medlt.data.source import open_data
from medlt.types import InputError

SETTINGS = {"patients": 20, "seed": 4, "size": 64, "imbalance": 5.0}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), **SETTINGS).parent


def test_bytes_do_not_hang_on_the_workers(folder, tmp_path):
    assert contents(write_phantom(tmp_path, **SETTINGS, workers=2).parent) == contents(folder)


def test_a_stopped_run_goes_on_to_the_same_bytes(folder, tmp_path):
    table = write_phantom(tmp_path, **SETTINGS)
    wanted = contents(tmp_path)
    files = sorted(tmp_path.rglob("*.dcm"))
    kept = files[-1].stat().st_mtime_ns
    for path in [table, *files[:5]]:
        path.unlink()
    write_phantom(tmp_path, **SETTINGS)
    assert contents(tmp_path) == wanted
    assert files[-1].stat().st_mtime_ns == kept


@pytest.mark.parametrize("other", [{"seed": 5}, {"size": 65}, {"imbalance": 9.0}])
def test_a_folder_of_other_settings_is_left_alone(folder, other):
    before = contents(folder)
    with pytest.raises(InputError, match="other settings"):
        write_phantom(folder, **{**SETTINGS, **other})
    assert contents(folder) == before


def test_nothing_is_written_on_bad_input_and_foreign_images_are_left_alone(tmp_path):
    with pytest.raises(InputError, match="at least 32"):
        write_phantom(tmp_path / "new", patients=20, size=16)
    assert not (tmp_path / "new").exists()
    (tmp_path / "dicom").mkdir()
    with pytest.raises(InputError, match="choose another folder"):
        write_phantom(tmp_path, **SETTINGS)


def test_the_table_names_files_that_show_what_was_rendered(folder):
    table = pd.read_csv(folder / "labels.csv")
    wanted = cohort(20, 4, 5.0)
    masks = [f"mask_{finding}" for finding in FINDINGS]
    pd.testing.assert_frame_equal(table.drop(columns=["path", *masks]), wanted, check_dtype=False)
    assert len(list(folder.rglob("*.dcm"))) == len(table)
    for record in table.iloc[::-6].to_dict("records"):
        seen = read_dicom(folder / record["path"])
        assert np.allclose(seen.pixels, render(record, 4, 64)[0], atol=1e-6)
        assert (seen.patient_id, seen.view) == (record["patient_id"], record["view"])


def test_masks_are_those_of_the_rendering_and_lie_beside_positive_rows_only(folder):
    """The manifest of a config leads to them; its digest sees a mask that changes."""
    data = PhantomData(patients=20, size=64, imbalance=5.0)
    manifest = open_data(data, seed=4, folder=folder)
    regions = Regions.of(manifest)
    assert len(list(folder.rglob("masks/*/*.png"))) == sum(len(regions.known(finding)) for finding in FINDINGS)
    for finding in FINDINGS:
        positive = manifest.rows.index[manifest.rows[finding] == 1]
        assert sorted(regions.known(finding)) == sorted(positive)
        record = manifest.rows.loc[positive[0]].to_dict() | {"uid": positive[0]}
        found = regions.masks([positive[0]], finding, 64)[0].numpy()
        np.testing.assert_array_equal(found, render(record, 4, 64)[1][finding])


def test_an_older_folder_gets_its_masks_and_keeps_its_images(folder, tmp_path):
    """Folders of releases before masks hold the same images, stamp and labels."""
    table = write_phantom(tmp_path, **SETTINGS)
    wanted = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    for path in tmp_path.rglob("masks/*/*.png"):
        path.unlink()
    pd.read_csv(table)[cohort(20, 4, 5.0).columns].to_csv(table, index=False)
    write_phantom(tmp_path, **SETTINGS)
    assert contents(tmp_path) == wanted
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}


@pytest.mark.slow
def test_a_linear_reader_beats_chance():
    """Ridge on 32 px images: most findings can be learnt, and none is given away."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score

    table = cohort(700, 0, 5.0)
    images = np.stack(
        [render(r, 0, 64)[0].reshape(32, 2, 32, 2).mean((1, 3)).ravel() for r in table.to_dict("records")]
    )
    train, test = (np.flatnonzero(table["split"] == s) for s in ("train", "test"))
    areas = []
    for finding in FINDINGS:
        truth = table[finding].to_numpy()
        reader = RidgeClassifier(alpha=30.0, class_weight="balanced").fit(images[train], truth[train])
        areas.append(roc_auc_score(truth[test], reader.decision_function(images[test])))
    assert 0.65 < np.mean(areas) < 0.95, dict(zip(FINDINGS, areas, strict=True))
