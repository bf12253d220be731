"""The localisation table on maps and images of known quality: perfect, reversed, ignorant and random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.evaluation.localisation import COLUMNS, IMAGE_METRICS, score_images, score_maps, some
from medlt.metrics.localisation import MEASURES
from medlt.rng import numpy_generator

FINDINGS = ("Mass", "Nodule", "Hernia")
N = 24


def corners(i: int) -> np.ndarray:
    """One cell row of an 8 x 8 grid, which moves with the image."""
    return np.array([[0.0, (i % 8) / 8, 1.0, (i % 8 + 1) / 8]])


@pytest.fixture
def regions() -> Regions:
    """Mass in all images, Nodule in the first three."""
    return Regions(
        boxes={"Mass": {f"u{i}": corners(i) for i in range(N)}, "Nodule": {f"u{i}": corners(i + 1) for i in range(3)}}
    )


@pytest.fixture
def patients() -> dict[str, str]:
    return {f"u{i}": f"p{i // 2}" for i in range(N)}


def scored(regions: Regions, patients: dict[str, str], **given: object) -> pd.DataFrame:
    def truth(uids: Sequence[str], finding: str) -> Tensor:
        return regions.masks(uids, finding, 8)

    def half(uids: Sequence[str], finding: str) -> Tensor:
        maps = truth(uids, finding)
        maps[::2] = torch.nan
        return maps

    stages = {"perfect": truth, "reversed": lambda *a: 1 - truth(*a), "flat": lambda *a: 0 * truth(*a), "half": half}
    options = {"rows": "train", "n_bootstrap": 50, **given}
    uids = [f"u{i}" for i in range(N)]
    return score_maps(stages, regions, uids, FINDINGS, patients, numpy_generator, **options)  # type: ignore[arg-type]


def test_each_stage_has_a_row_for_each_finding_measure_and_the_mean(regions, patients):
    table = scored(regions, patients)
    assert tuple(table.columns) == COLUMNS
    stages = ("perfect", "reversed", "flat", "half")
    wanted = {(f, s, m) for f in ("Mass", "Nodule", "macro") for s in stages for m in MEASURES}
    assert set(map(tuple, table[["finding", "stage", "metric"]].to_numpy())) == wanted
    assert len(table) == len(wanted)
    at = table.set_index(["finding", "stage", "metric"])["value"].to_dict()
    for finding in ("Mass", "Nodule", "macro"):
        assert {name: at[finding, "perfect", name] for name in MEASURES} == pytest.approx(
            {"auroc": 1, "pointing": 1, "lesion": 1, "area": 1 / 8, "top": 1}
        )
        assert at[finding, "reversed", "auroc"] == pytest.approx(0)
        assert at[finding, "flat", "auroc"] == pytest.approx(0.5)
        assert at[finding, "flat", "pointing"] == pytest.approx(1 / 8)
    assert (table["rows"] == "train").all()


def test_a_stage_that_does_not_know_an_image_is_not_scored_on_it(regions, patients):
    table = scored(regions, patients).set_index(["finding", "stage", "metric"])
    row = table.loc[("Mass", "half", "auroc")]
    assert (row["images"], row["patients"], row["value"], row["reason"]) == (N // 2, N // 2, 1.0, "")
    few = table.loc[("Nodule", "perfect", "auroc")]
    assert (few["images"], few["patients"]) == (3, 2)
    assert "fewer than 6 patients" in few["reason"]


def test_the_mean_of_findings_is_over_images_that_every_stage_knows(regions, patients):
    """A stage that knows the easy finding alone is compared on it alone; one that knows nothing limits no other."""

    def easy(uids: Sequence[str], finding: str) -> Tensor:
        maps = regions.masks(uids, finding, 8)
        return maps if finding == "Mass" else maps * torch.nan

    def harder(uids: Sequence[str], finding: str) -> Tensor:
        maps = regions.masks(uids, finding, 8)
        return maps if finding == "Mass" else 1 - maps

    def nothing(uids: Sequence[str], finding: str) -> Tensor:
        return torch.full((len(uids), 8, 8), torch.nan)

    stages = {"easy": easy, "harder": harder, "nothing": nothing}
    uids = [f"u{i}" for i in range(N)]
    table = score_maps(stages, regions, uids, FINDINGS, patients, numpy_generator, rows="val", n_bootstrap=20)
    macro = table[(table["finding"] == "macro") & (table["metric"] == "auroc")].set_index("stage")
    assert macro.loc[["easy", "harder"], "value"].tolist() == pytest.approx([1, 1])
    assert macro.loc[["easy", "harder", "nothing"], "images"].tolist() == [N, N, 0]
    alone = table.set_index(["finding", "stage", "metric"]).sort_index()
    assert alone.loc[("Nodule", "harder", "auroc"), "value"] == pytest.approx(0)


def test_a_hash_of_the_uid_chooses_among_many(regions, patients):
    table = scored(regions, patients, most=10)
    assert table[(table["finding"] == "Mass") & (table["stage"] == "perfect")]["images"].tolist() == [10] * 5
    uids = {f"u{i}" for i in range(N)}
    assert some(uids, 10) == sorted(some(uids, 10))
    assert set(some(uids, 10)) <= set(some(uids, 11))
    assert some(uids, 99) == sorted(uids)


def test_without_regions_there_is_no_row(patients):
    assert scored(Regions(), patients).empty


def made(carried: np.ndarray, mass: np.ndarray, label: np.ndarray) -> pd.DataFrame:
    n = len(carried)
    rows = {
        "finding": ["Mass", "Nodule"] * (n // 2),
        "tail_parent": [f"u{i % N}" for i in range(n)],
        "lesion_carried": carried,
        "mask_share": 0.25,
        "tail_mass": mass,
        "label_mass": label,
        "Mass": label,
        "Nodule": label,
    }
    return pd.DataFrame(rows, index=[f"s{i}" for i in range(n)])


def test_images_are_counted_by_what_they_carry(patients):
    rng = np.random.default_rng(0)
    carried = rng.random(2 * N)
    label = np.where(carried < 0.2, np.nan, 1.0)
    table = score_images(made(carried, carried**2, label), patients, numpy_generator, n_bootstrap=50)
    assert set(table["metric"]) == set(IMAGE_METRICS)
    assert list(dict.fromkeys(table["finding"])) == ["overall", "Mass", "Nodule"]
    at = table.set_index(["finding", "metric"])
    asserted = carried[~np.isnan(label)]
    assert at.loc[("overall", "lesion_carried"), "value"] == pytest.approx(carried.mean())
    assert at.loc[("overall", "mask_share"), "value"] == pytest.approx(0.25)
    assert at.loc[("overall", "below_half"), "value"] == pytest.approx((asserted < 0.5).mean())
    assert at.loc[("overall", "below_half"), "images"] == len(asserted)
    assert at.loc[("overall", "tail_mass_correlation"), "value"] == pytest.approx(1)
    assert np.isnan(at.loc[("overall", "label_mass_correlation"), "value"])
    assert at.loc[("overall", "label_mass_correlation"), "reason"] == "too few different values"
    assert at.loc[("Mass", "lesion_carried"), "value"] == pytest.approx(carried[::2].mean())
    assert at.loc[("overall", "lesion_carried"), "patients"] == N // 2


def test_a_random_mass_has_no_correlation_in_its_interval(patients):
    rng = np.random.default_rng(1)
    carried, label = rng.random(2 * N), np.ones(2 * N)
    table = score_images(made(carried, rng.random(2 * N), label), patients, numpy_generator, n_bootstrap=200)
    row = table.set_index(["finding", "metric"]).loc[("overall", "tail_mass_correlation")]
    assert row["low"] < 0 < row["high"]


def test_images_of_parents_without_a_region_have_no_row(patients):
    rows = made(np.full(4, np.nan), np.ones(4), np.ones(4))
    assert score_images(rows, patients, numpy_generator).empty
    assert score_images(rows.drop(columns="lesion_carried"), patients, numpy_generator).empty
