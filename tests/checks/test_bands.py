"""Bands: known points by hand, a brute-force oracle, what must not change them, and verifiers that memorise."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch import Tensor

from medlt.checks.bands import (
    Band,
    Features,
    InBand,
    Rule,
    band,
    group,
    in_band,
    limits,
    neighbour_distance,
    shrunk,
    widest,
)
from medlt.rng import numpy_generator
from medlt.types import Batch, InputError

SQUARE = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
NEAREST, CENTRE = Rule(k=1), Rule(form="centre")


def spread(n: int, seed: int = 0, size: int = 3) -> np.ndarray:
    return numpy_generator("bands", seed, n).normal(size=(n, size))


def brute(reference: np.ndarray, points: np.ndarray | None, k: int) -> list[float]:
    """Mean distance to the k nearest, one pair at a time; without points leave-one-out."""
    out = []
    for i, point in enumerate(reference if points is None else points):
        every = [sqrt(sum((point - other) ** 2)) for j, other in enumerate(reference) if points is not None or i != j]
        near = sorted(every)[:k]
        out.append(sum(near) / len(near))
    return out


def test_a_square_has_the_bands_drawn_by_hand() -> None:
    """Each corner is 1 from the next: d_f = 1. Beside (1, 0): 0.5 away ID, 1.5 AID, 2.5 OOD."""
    known = shrunk([band(SQUARE, rule=NEAREST)])[0]
    assert known.limit == pytest.approx(1)
    result = known.value(np.array([[1.5, 0], [2.5, 0], [3.5, 0], [0, 0]]))
    np.testing.assert_allclose(result, [0.5, 1.5, 2.5, 0], atol=1e-6)
    assert [group(value) for value in result] == ["ID", "AID", "OOD", "ID"]
    assert [group(value) for value in (1.0, 2.0, np.nan)] == ["ID", "AID", "OOD"]


def test_the_published_form_by_hand() -> None:
    """The middle is (0.5, 0.5), the widest pair a diagonal of sqrt 2."""
    known = shrunk([band(SQUARE, rule=CENTRE)])[0]
    assert known.limit == pytest.approx(sqrt(2))
    away = np.array([[0.5, 0.5 + 0.9 * sqrt(2)], [0.5 + 1.9 * sqrt(2), 0.5], [0.5, 0.5 - 2.1 * sqrt(2)]])
    assert [group(value) for value in known.value(away)] == ["ID", "AID", "OOD"]


@settings(max_examples=40)
@given(n=st.integers(2, 40), m=st.integers(1, 12), k=st.integers(1, 7), seed=st.integers(0, 99), separate=st.booleans())
def test_distances_and_limits_are_those_of_a_slow_loop(n: int, m: int, k: int, seed: int, separate: bool) -> None:
    reference, points = spread(n, seed), spread(m, seed + 1000) * 2
    np.testing.assert_allclose(neighbour_distance(reference, points, k), brute(reference, points, k), atol=1e-6)
    held_out = points if separate else None
    made = band(reference, held_out, Rule(k=k))
    distance = brute(reference, held_out, k)
    assert made.limit == pytest.approx(np.quantile(distance, 0.95), abs=1e-6)
    np.testing.assert_allclose(made.value(points), np.array(brute(reference, points, k)) / made.limit, atol=1e-5)
    far_apart = max(np.linalg.norm(a - b) for a, b in combinations(reference, 2))
    published = band(reference, held_out, CENTRE)
    assert published.limit == pytest.approx(far_apart, abs=1e-6)
    far = [np.linalg.norm(point - reference.mean(0)) for point in points]
    np.testing.assert_allclose(published.value(points), np.array(far) / far_apart, atol=1e-6)


@settings(max_examples=25)
@given(
    scale=st.floats(0.01, 100),
    angle=st.floats(0, 6),
    seed=st.integers(0, 99),
    form=st.sampled_from(["neighbours", "centre"]),
)
def test_what_moves_all_features_alike_changes_nothing(scale: float, angle: float, seed: int, form: str) -> None:
    """Scale, rotation, shift and the order of the rows."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    real, points = spread(12, seed, 2), spread(9, seed + 1, 2) * 3
    rule = Rule(form=form)  # type: ignore[arg-type]

    def value(real: np.ndarray, points: np.ndarray) -> np.ndarray:
        return shrunk([band(real, rule=rule)])[0].value(points)

    order = numpy_generator(seed).permutation(12)
    moved = value(scale * real[order] @ turn + 3 * scale, scale * points @ turn + 3 * scale)
    np.testing.assert_allclose(moved, value(real, points), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_of_many_images_a_drawn_sample_calibrates(separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its quantile has nearly the rank of that of all, and every image stays in the reference."""
    reference, held_out = spread(6000, 1), spread(5000, 2) if separate else None
    made = band(reference, held_out)
    monkeypatch.setattr("medlt.checks.bands.MOST", 10**6)
    whole = band(reference, held_out)
    assert len(made.calibration) == 2000
    assert len(whole.calibration) == (5000 if separate else 6000)
    assert np.isin(made.calibration.round(9), whole.calibration.round(9)).all()
    assert 0.93 < (whole.calibration <= made.limit).mean() < 0.97
    assert np.array_equal(made.reference, whole.reference)
    points = spread(20, 3)
    np.testing.assert_allclose(made.value(points) * made.limit, whole.value(points) * whole.limit)


@settings(max_examples=60)
@given(n=st.integers(2, 60), block=st.integers(1, 9), outliers=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_widest_pair_is_that_of_all_pairs(n: int, block: int, outliers: float, seed: int) -> None:
    draw = numpy_generator("widest", seed)
    points = draw.normal(size=(n, 4)) * np.where(draw.random(n) < outliers, 5, 1)[:, None] + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medlt.checks.bands.BLOCK", block)
        assert widest(points) == pytest.approx(pdist(points).max(), rel=1e-9)
        assert widest(np.repeat(points[:1], n, 0)) == pytest.approx(0, abs=1e-6)


def test_the_widest_pair_may_be_of_points_that_are_not_outermost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triangle of radius 1, whose sides are 1.73, and two points 0.95 above and below its middle."""
    monkeypatch.setattr("medlt.checks.bands.BLOCK", 3)
    angle = 2 * np.pi / 3 * np.arange(3)
    triangle = np.stack([np.cos(angle), np.sin(angle), np.zeros(3)], 1)
    points = np.concatenate([triangle, [[0, 0, 0.95], [0, 0, -0.95], [0, 0, 0.2], [0, 0, -0.2]]])
    assert widest(points) == pytest.approx(1.9)


def test_shrinkage_is_the_formula() -> None:
    """Of 6, 29 and 30 calibrating images; the last, and only the last, keeps its own quantile."""
    made = [band(spread(50, n) * n, spread(n, n) * n, Rule(k=3)) for n in (6, 29, 30)]
    ratios = np.concatenate([one.calibration / np.median(one.calibration) for one in made])
    shape = np.quantile(ratios, 0.95)
    for one, after in zip(made, shrunk(made), strict=True):
        share = len(one.calibration) / 30
        expected = share * np.quantile(one.calibration, 0.95) + (1 - share) * np.median(one.calibration) * shape
        assert after.limit == pytest.approx(expected)
    assert shrunk(made)[2].limit == made[2].limit
    assert shrunk(made)[0].limit != made[0].limit


def test_shrinkage_steadies_few_images_and_keeps_the_scale() -> None:
    """Six images of a finding beside many of another, 10 times as far separate: nearer to the limit of thousands."""
    truth = band(spread(2000, 1), spread(4000, 2), Rule(k=5)).limit
    much = band(10 * spread(2000, 3), 10 * spread(2000, 4), Rule(k=5))
    errors = []
    for seed in range(40):
        few = band(spread(2000, 1), spread(6, seed + 10), Rule(k=5))
        after = shrunk([few, much])
        assert after[1].limit == much.limit
        errors.append([abs(few.limit - truth), abs(after[0].limit - truth)])
    own, pooled = np.mean(errors, axis=0)
    assert pooled < 0.9 * own


def test_limits_of_a_labelled_set() -> None:
    """One a finding, leave-one-out; none for a finding with one positive or none; unknown labels are not positives."""
    features = np.concatenate([SQUARE, 2 * SQUARE, [[9.0, 9.0]], [[5.0, 5.0]]])
    labels = np.zeros((10, 4))
    labels[:4, 0], labels[4:8, 1], labels[8, 2], labels[9, 0] = 1, 1, 1, np.nan
    np.testing.assert_allclose(limits(features, labels, NEAREST), [1, 2, np.nan, np.nan], atol=1e-6)


def test_equal_positives_make_no_band() -> None:
    """Copies of one image are at distance 0 of each other: they give no limit."""
    known = shrunk([band(np.zeros((5, 2)))])[0]
    assert np.isnan(known.value(np.ones((1, 2)))).all()


# A small collection of 2-D "images": pixel (0, 0) and (0, 1) are the features.

FOLD = pd.Series([0, 1, 2] * 20, index=[f"u{n:02d}" for n in range(60)])
POINTS = pd.DataFrame(spread(60, 7, 2), index=FOLD.index)
LABELS = pd.DataFrame({"A": 1.0, "B": [1.0] * 9 + [0.0] * 50 + [np.nan]}, index=FOLD.index).assign(C=0.0, D=0.0)
LABELS.loc["u00", "C"] = 1.0


def image(points: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(points, np.float32)).reshape(-1, 1, 1, 2)


def images(uids: Sequence[str]) -> Tensor:
    return image(POINTS.loc[list(uids)].to_numpy())


def batch(points: np.ndarray, fold: int, finding: str = "A") -> Batch:
    index = pd.Index([f"s{n}" for n in range(len(points))], name="uid")
    rows = pd.DataFrame({"finding": finding, "fold": fold}, index=index)
    return Batch(rows, image(points), pd.DataFrame(index=index))


def values(check: InBand, given_: Batch) -> np.ndarray:
    return np.array([result.value for result in check(given_)])


def test_each_fold_has_its_verifier_its_reference_and_its_calibration() -> None:
    extractors = [lambda shown, by=by: shown.flatten(1) * by for by in (1.0, 10.0, 100.0)]
    check = in_band(extractors, images, FOLD, LABELS, ["A", "B"], rule=NEAREST)
    for k, by in enumerate((1.0, 10.0, 100.0)):
        for name in ("A", "B"):
            has = LABELS.index[LABELS[name] == 1]
            inside, outside = has[FOLD[has] == k], has[FOLD[has] != k]
            known = check.bands[k][name]
            np.testing.assert_allclose(known.reference, POINTS.loc[outside] * by, rtol=1e-5)
            expected = brute(POINTS.loc[outside].to_numpy() * by, POINTS.loc[inside].to_numpy() * by, 1)
            np.testing.assert_allclose(known.calibration, expected, rtol=1e-3, atol=1e-5)
    same = in_band([extractors[0]] * 3, images, FOLD, LABELS, ["A", "B"], rule=NEAREST)
    points = spread(8, 5, 2) * 3
    for k in range(3):  # verifiers may have features of different scales
        np.testing.assert_allclose(values(check, batch(points, k)), values(same, batch(points, k)), rtol=1e-3)


def test_a_verifier_that_memorised_its_images_does_not_narrow_the_band() -> None:
    """What it was trained on is ten times as near to the middle in its features. New images of the real kind stay in
    the band; calibrated by its own training set most of them would be out."""
    trained = [images(FOLD.index[FOLD != k]).flatten(1) for k in range(3)]

    def extractor(k: int) -> Features:
        def look(shown: Tensor) -> Tensor:
            flat = shown.flatten(1)
            known = (flat[:, None] == trained[k]).all(2).any(1, keepdim=True)
            return torch.where(known, flat / 10, flat)

        return look

    check = in_band([extractor(k) for k in range(3)], images, FOLD, LABELS, ["A"])
    new = batch(spread(200, 99, 2), 1)
    result = values(check, new)
    assert (result <= 1).mean() > 0.8
    assert (result <= 2).mean() > 0.98
    own = band(check.bands[1]["A"].reference)
    assert (own.value(new.images.flatten(1).numpy()) > 2).mean() > 0.8


def test_reasons_of_images_in_and_out_and_without_a_band() -> None:
    extractors = [lambda shown: shown.flatten(1)] * 3
    check = in_band(extractors, images, FOLD, LABELS, ["A", "C", "D"])
    inside, outside = check(batch(np.array([[0.0, 0.0], [50.0, 0.0]]), 0))
    assert (inside.passed, outside.passed) == (True, False)
    assert inside.limit == 2
    assert outside.reason.startswith("OOD")
    for name in ("C", "D", "never heard of"):
        (result,) = check(batch(np.zeros((1, 2)), 1, name))
        assert not result.passed
        assert result.reason.startswith(f"no band for {name}")
    strict = replace(check, limit=1.0)
    edge = batch(np.array([[3.2, 0.0]]), 0)
    (loose,), (tight,) = check(edge), strict(edge)
    assert 1 < loose.value < 2
    assert (loose.passed, tight.passed) == (True, False)
    (broken,) = check(batch(np.array([[np.nan, 0.0]]), 0))
    assert not broken.passed
    assert "not finite" in broken.reason


def test_an_image_is_rated_alike_alone_and_in_company() -> None:
    check = in_band([lambda shown: shown.flatten(1)] * 3, images, FOLD, LABELS, ["A", "B"])
    points = spread(7, 3, 2) * 2
    together = batch(points, 0)
    together.rows["fold"], together.rows["finding"] = [0, 1, 2, 0, 1, 2, 0], list("ABABABA")
    result = check(together)
    assert [one.uid for one in result] == list(together.rows.index)
    for i, one in enumerate(result):
        (alone,) = check(Batch(together.rows.iloc[[i]], together.images[[i]], together.labels.iloc[[i]]))
        assert alone.uid == one.uid
        assert alone.value == pytest.approx(one.value)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="2 verifiers for 3 folds"):
        in_band([lambda shown: shown] * 2, images, FOLD, LABELS, ["A"])
    check = InBand([], [])
    with pytest.raises(InputError, match="lack the columns \\['fold'\\]"):
        check(Batch(pd.DataFrame({"finding": ["A"]}, index=["s"]), torch.zeros(1, 1, 1, 2), pd.DataFrame(index=["s"])))
    for wrong in ({"form": "mean"}, {"k": 0}, {"quantile": 0.0}):
        with pytest.raises(InputError, match="bands"):
            Rule(**wrong)  # type: ignore[arg-type]
    assert np.isnan(Band(SQUARE, np.nan).value(SQUARE)).all()
