"""A chest, the right way round, that hangs on its row alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medlt.data.phantom.grid import grid
from medlt.data.phantom.projection import MU_BONE, MU_LUNG, MU_WATER, attenuation
from medlt.data.phantom.render import beam, film, render
from medlt.data.phantom.vessels import tree
from medlt.rng import numpy_generator
from medlt.types import InputError


def test_lungs_are_dark_heart_and_liver_bright_outside_black(row):
    for number in range(6):
        exposed = film(row(number), 1, 128)
        maps, _ = beam(row(number), 1, 128)
        lung = exposed.image[maps.lung > 8].mean()
        assert exposed.image[maps.heart].mean() > lung + 0.2
        liver = (maps.side < 0) & (maps.grid.y > maps.chest.domes[0] + 3) & (maps.ax < 9) & (maps.lung == 0)
        assert exposed.image[liver].mean() > lung + 0.2
        assert exposed.image[maps.body == 0].mean() < lung


def test_apex_of_the_heart_and_stomach_are_on_the_image_right_and_the_right_dome_is_higher(row):
    bubbles = 0
    for number in range(8):
        maps, _ = beam(row(number), 1, 128)
        assert np.argwhere(maps.heart)[:, 1].mean() > 68
        assert maps.chest.domes[0] < maps.chest.domes[1]
        stomach = (maps.gas > 0.3) & (maps.grid.y > maps.chest.domes[1] + 0.5)
        bubbles += bool(stomach.any())
        assert not (stomach & (maps.side < 0)).any()
    assert bubbles >= 4


def test_attenuation_is_beer_lambert_of_the_path_lengths(row):
    maps, _ = beam(row(2), 1, 96)
    alone = (maps.vessels == 0) & (maps.solid == 0) & (maps.gas == 0) & (maps.body > 2) & (maps.lung < maps.body)
    expected = MU_WATER * (maps.body - maps.lung) + MU_LUNG * maps.lung + (MU_BONE - MU_WATER) * maps.bone
    assert np.allclose(attenuation(maps)[alone], expected[alone], atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_grid_and_its_inverse_agree(angle):
    plane = grid(50, 36.0, angle, (1.0, -2.0))
    rows, columns = np.array([3, 20, 44]), np.array([40, 7, 25])
    points = np.stack([plane.x[rows, columns], plane.y[rows, columns]], axis=1)
    assert np.allclose(plane.pixels(points), np.stack([columns, rows], axis=1), atol=1e-3)


def test_strokes_cover_their_area_at_any_size():
    line = [np.array([[-8.0, -3.0], [6.0, 5.0]])]
    for width in (0.1, 0.5, 1.2):
        planes = [grid(size, 36.0) for size in (64, 128, 256, 512)]
        areas = [plane.stroke(line, width).sum() * plane.spacing**2 for plane in planes]
        assert np.allclose(areas, width * np.hypot(14, 8), rtol=0.2), (width, areas)


def test_vessels_halve_into_four_generations():
    grown = tree(numpy_generator(0), 10.0, 8, 4)
    assert [len(curves) for curves in grown] == [8, 16, 32, 64]
    assert np.array_equal(grown[1][::2, 0], grown[0][:, -1])


def test_the_same_chest_at_every_size(row):
    large = cv2.resize(film(row(3, "Mass"), 1, 256).image, (64, 64), interpolation=cv2.INTER_AREA)
    small = film(row(3, "Mass"), 1, 64).image
    assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.99


def test_an_image_hangs_on_its_row_and_the_seed(row):
    wanted = film(row(1, "Effusion"), 1, 96).pixels
    film(row(2), 1, 96)
    assert np.array_equal(film(row(1, "Effusion"), 1, 96).pixels, wanted)
    assert not np.array_equal(film(row(1, "Effusion"), 2, 96).pixels, wanted)
    assert not np.array_equal(film(row(1), 1, 96).pixels, wanted)


def test_render_gives_an_image_in_range_and_the_masks(row):
    image, masks = render(row(1, "Nodule"), 1, 96)
    assert image.dtype == np.float32
    assert image.shape == (96, 96)
    assert 0 <= image.min() < 0.05
    assert 0.7 < image.max() <= 1
    assert list(masks) == ["Nodule"]


def test_women_carry_breast_shadows_and_old_people_larger_aortas(row):
    female, male = (np.mean([beam(row(n, sex=s), 1, 64)[0].chest.breast for n in range(8)]) for s in "FM")
    assert female > male + 1
    young, old = (beam(row(0, age=a), 1, 64)[0].chest for a in (25, 85))
    assert old.knob > young.knob
    assert old.bone < young.bone


def test_portable_films_get_fewer_photons(row):
    """Noise is what differs between two exposures; the fewer photons, the more of it."""

    def noise(view: str) -> float:
        images = [film(row(n, view=view), 1, 128).pixels.astype(float) for n in range(5)]
        return float(np.mean([abs(np.diff(i[90:120, 40:60], axis=0)).mean() for i in images]))

    assert noise("AP") > 1.2 * noise("PA")


def test_too_small_a_size_is_told(row):
    with pytest.raises(InputError, match="at least 32"):
        film(row(), 1, 16)
