"""Each finding is what radiology says it is, measured on masks, path lengths and grey values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medlt.data.phantom.anatomy import chest
from medlt.data.phantom.findings import Site, lose_volume
from medlt.data.phantom.render import FINDINGS, beam, film
from medlt.rng import numpy_generator

SEED, SIZE = 5, 160


def width(mask: np.ndarray) -> int:
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0] + 1)


def ratio(exposed) -> float:
    return width(exposed.anatomy["heart"]) / width(exposed.anatomy["thorax"])


def longest_mm(mask: np.ndarray, spacing: float) -> float:
    corners = np.argwhere(mask)
    hull = corners[ConvexHull(corners).vertices] if len(corners) > 3 else corners
    return (pdist(hull).max() + 1) * spacing


def change(row, number: int, finding: str, where: np.ndarray | None = None, **traits) -> float:
    """Grey level inside the finding's mask (or `where`) minus the same pixels without it, the lung's drift removed."""
    plain, changed = (film(row(number, *names, **traits), SEED, SIZE) for names in ((), (finding,)))
    difference = changed.pixels.astype(float) - plain.pixels
    mask = changed.masks[finding]
    rest = plain.anatomy["lung"] & ~ndimage.binary_dilation(mask, iterations=6)
    return difference[mask if where is None else where].mean() - difference[rest].mean()


@pytest.mark.parametrize("number", range(10))
def test_cardiothoracic_ratio_passes_a_half_with_cardiomegaly_only(row, number):
    assert ratio(film(row(number), SEED, 256)) < 0.5
    assert ratio(film(row(number, "Cardiomegaly"), SEED, 256)) > 0.5


def test_heart_is_magnified_on_ap_films(row):
    pairs = [(film(row(n), SEED, 256), film(row(n, view="AP"), SEED, 256)) for n in range(4)]
    for frontal, portable in pairs:
        assert ratio(portable) / ratio(frontal) == pytest.approx(1.12, abs=0.03)


@pytest.mark.parametrize("number", range(6))
def test_effusion_whitens_the_costophrenic_angle(row, number):
    maps, masks = beam(row(number, "Effusion"), SEED, SIZE)
    angle = masks["Effusion"] & (maps.ax > 0.88 * maps.wall)
    assert angle.sum() > 5
    assert change(row, number, "Effusion", angle) > 150


def test_effusion_climbs_along_the_wall(row):
    for number in range(6):
        maps, masks = beam(row(number, "Effusion"), SEED, SIZE)
        for side in (-1, 1):
            mask = masks["Effusion"] & maps.on(side)
            if mask.any():
                lateral = maps.grid.y[mask & (maps.ax > 0.92 * maps.wall)].min()
                central = maps.grid.y[mask & (abs(maps.ax / maps.wall - 0.6) < 0.05)].min()
                assert lateral < central - 0.5


@pytest.mark.parametrize("number", range(6))
def test_pneumothorax_is_black_without_vessels_behind_a_white_line(row, number):
    maps, masks = beam(row(number, "Pneumothorax"), SEED, 256)
    plain, _ = beam(row(number), SEED, 256)
    mask = masks["Pneumothorax"]
    assert plain.vessels[mask].max() > 0
    assert maps.vessels[mask].max() == 0
    assert change(row, number, "Pneumothorax") < -40
    extra = maps.body - plain.body
    edge = ndimage.binary_dilation(mask, iterations=4) & ~mask
    assert extra.max() > 0.7
    assert extra[~edge].max() < 0.2


def test_pleural_line_shows_in_the_image(row):
    """Across the pleura the grey value peaks: brighter on the line than 4 mm to either side."""
    peaks = []
    for number in range(8):
        exposed = film(row(number, "Pneumothorax"), SEED, 256)
        signed = ndimage.distance_transform_edt(exposed.masks["Pneumothorax"])
        signed -= ndimage.distance_transform_edt(~exposed.masks["Pneumothorax"])
        inside = ndimage.binary_erosion(exposed.anatomy["lung"] | exposed.masks["Pneumothorax"], iterations=2)
        at = [exposed.pixels[inside & (abs(signed - d) < 0.8)].mean() for d in (-4, -1, 3)]
        peaks.append(at[1] - (at[0] + at[2]) / 2)
    assert np.mean(peaks) > 20


def test_nodules_stay_below_three_centimetres_and_masses_pass_them(row):
    for number in range(25):
        for finding in ("Nodule", "Mass"):
            exposed = film(row(number, finding), SEED, 256)
            parts, count = ndimage.label(exposed.masks[finding])
            sizes = [longest_mm(parts == k + 1, exposed.spacing_mm) for k in range(count)]
            assert 1 <= count <= 3
            assert (8 < min(sizes) and max(sizes) <= 30) if finding == "Nodule" else min(sizes) > 30, (number, sizes)


@pytest.mark.parametrize("finding", ["Nodule", "Mass", "Consolidation", "Support_Device"])
def test_opacities_are_brighter_than_what_they_cover(row, finding):
    assert np.mean([change(row, number, finding) for number in range(6)]) > 60


@pytest.mark.parametrize("number", range(8))
def test_atelectasis_raises_the_dome_and_pulls_the_mediastinum_over(number):
    key = (SEED, "Atelectasis", f"u{number}")
    before = chest(sex="M", age=60, view="PA", body=numpy_generator(number), study=numpy_generator(number, 1))
    after, side = lose_volume(before, numpy_generator(*key)), Site.draw(numpy_generator(*key)).side
    assert after.dome(side) < before.dome(side) - 0.4
    assert after.dome(-side) == before.dome(-side)
    assert side * (after.shift - before.shift) > 0.2


def test_atelectasis_shows_as_an_opacity_with_less_lung(row):
    plain, shrunk = ([film(row(n, *names), SEED, SIZE) for n in range(6)] for names in ((), ("Atelectasis",)))
    aerated = [b.anatomy["lung"].sum() / a.anatomy["lung"].sum() for a, b in zip(plain, shrunk, strict=True)]
    assert np.mean(aerated) < 0.97
    assert np.mean([change(row, n, "Atelectasis") for n in range(6)]) > 60


@pytest.mark.parametrize("number", range(5))
def test_free_air_lies_dark_under_the_dome_with_the_diaphragm_above(row, number):
    maps, masks = beam(row(number, "Pneumoperitoneum"), SEED, 256)
    mask = masks["Pneumoperitoneum"]
    below = maps.grid.y - maps.chest.diaphragm(maps.ax, maps.side)
    assert (mask & (maps.side < 0)).any()
    assert below[mask].min() > 0.2
    assert below[mask].max() < 3.5
    assert change(row, number, "Pneumoperitoneum") < -60
    exposed = film(row(number, "Pneumoperitoneum"), SEED, 256)
    air = ndimage.binary_erosion(mask & (maps.side < 0))
    diaphragm = (maps.side < 0) & (abs(below - 0.15) < 0.1) & (abs(maps.ax - 0.5 * maps.chest.width) < 1.5)
    assert exposed.pixels[diaphragm].mean() > exposed.pixels[air].mean() + 30


def test_a_nodule_leaves_everything_else_as_it_was(row):
    (plain, _), (changed, masks) = (beam(row(3, *names), SEED, SIZE) for names in ((), ("Nodule",)))
    for name in ("body", "lung", "aeration", "vessels", "bone", "gas", "metal"):
        assert np.array_equal(getattr(plain, name), getattr(changed, name)), name
    assert np.array_equal(changed.solid != plain.solid, masks["Nodule"])


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_chronic_finding_looks_alike_in_the_next_study(row, finding):
    first, second = row(4, finding), row(4, finding) | {"uid": "u4-later"}
    severity = {name: beam(r, SEED, 96)[0].chest.cardiothoracic for name, r in (("a", first), ("b", second))}
    assert severity["a"] == severity["b"]
    assert not np.array_equal(film(first, SEED, 96).pixels, film(second, SEED, 96).pixels)


def test_every_finding_has_a_mask_when_all_are_present(row):
    exposed = film(row(1, *FINDINGS, view="AP"), SEED, SIZE)
    assert set(exposed.masks) == set(FINDINGS)
    assert all(mask.any() and mask.dtype == bool and mask.shape == (SIZE, SIZE) for mask in exposed.masks.values())
