"""Label rules: cases worked by hand, and properties for any parents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.synthesis.labels import RULES, cam_share, fused_labels
from medlt.types import InputError

NAN = float("nan")


def one(rule: str, y_i: float, y_j: float, m_i: float = 1.0, m_j: float = 1.0) -> float:
    return float(fused_labels(rule, *(np.array([[v]]) for v in (y_i, y_j, m_i, m_j)))[0, 0])


@pytest.mark.parametrize(
    ("rule", "y_i", "y_j", "m_i", "m_j", "expected"),
    [
        ("tail", 1, 0, 0.1, 0.1, 1.0),
        ("tail", 1, NAN, 1.0, 1.0, 1.0),
        ("tail", 0, 0, 1.0, 1.0, 0.0),
        ("tail", 0, 1, 1.0, 1.0, NAN),
        ("tail", NAN, 1, 1.0, 1.0, NAN),
        ("union", 0, 1, 0.0, 0.0, 1.0),
        ("union", 1, NAN, 0.0, 0.0, 1.0),
        ("union", 0, NAN, 0.0, 0.0, NAN),
        ("union", 0, 0, 1.0, 1.0, 0.0),
        ("cam_mass", 1, 0, 0.9, 1.0, 0.9),
        ("cam_mass", 1, 0, 0.5, 1.0, NAN),
        ("cam_mass", 1, 0, 0.1, 1.0, 0.1),
        ("cam_mass", 1, 1, 0.1, 0.95, 0.95),
        ("cam_mass", 0, 1, 1.0, 0.05, 0.05),
        ("cam_mass", 1, 0, 0.8, 1.0, 0.8),
        ("cam_mass", 1, 0, 0.2, 1.0, 0.2),
        ("cam_mass", 1, NAN, 0.9, 1.0, 0.9),
        ("cam_mass", 1, NAN, 0.1, 1.0, NAN),
        ("cam_mass", 0, 0, 1.0, 1.0, 0.0),
        ("cam_mass", 1, 0, NAN, 1.0, NAN),
        ("cam_mass", 0, 0, NAN, NAN, 0.0),
        ("cam_mass", 0, 1, NAN, NAN, NAN),
        ("cam_mass", 1, 1, NAN, 0.9, 0.9),
        ("cam_mass", 1, 1, NAN, 0.1, NAN),
        ("lesion_carried", 1, 0, 1.0, NAN, 1.0),
        ("lesion_carried", 1, 0, 0.5, NAN, NAN),
        ("lesion_carried", 1, 0, NAN, NAN, NAN),
        ("measured", 1, 0, 0.9, NAN, 0.9),
        ("measured", 1, 0, NAN, NAN, NAN),
    ],
)
def test_by_hand(rule: str, y_i: float, y_j: float, m_i: float, m_j: float, expected: float) -> None:
    assert one(rule, y_i, y_j, m_i, m_j) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_an_unmeasured_map_leaves_the_label_to_the_tail_parent() -> None:
    y_i, y_j = np.array([[1.0, 0.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 0.0, 0.0]])
    mass, unmeasured = np.full((1, 4), NAN), np.array([[True, True, False, False]])
    known = fused_labels("measured", y_i, y_j, mass, mass, None, unmeasured)
    np.testing.assert_array_equal(known, [[1.0, NAN, 0.0, NAN]])
    without = fused_labels("cam_mass", y_i, y_j, mass, mass, None, unmeasured)
    np.testing.assert_array_equal(without, [[NAN, NAN, 0.0, NAN]])


@given(
    st.sampled_from(sorted(RULES)),
    st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, NAN])] * 2, *[st.floats(0, 1)] * 2), min_size=2, max_size=6),
)
def test_labels_never_leave_the_interval_and_no_finding_is_zero(
    rule: str, columns: list[tuple[float, float, float, float]]
) -> None:
    y_i, y_j, m_i, m_j = (np.array([column]) for column in np.array(columns).T)
    y_i[0, 0] = 1.0  # the tail finding
    y = fused_labels(rule, y_i, y_j, m_i, m_j, no_finding=1)[0]
    assert y[1] == 0.0
    assert all(np.isnan(v) or 0.0 <= v <= 1.0 for v in y)
    if rule == "cam_mass":
        assert all(np.isnan(v) or v <= np.float32(0.2) or v >= np.float32(0.8) for v in y)


def test_a_head_finding_whose_pixels_were_left_out_is_not_kept() -> None:
    assert one("union", 0, 1, 0.0, 0.0) == 1.0
    assert one("cam_mass", 0, 1, 0.0, 0.0) == 0.0


def test_mass_by_hand() -> None:
    cam = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    pixels = torch.tensor([[[True, False], [False, True]], [[True, False], [False, False]]])
    assert cam_share(cam, pixels) == pytest.approx([0.5, 0.25])
    assert cam_share(cam, pixels) + cam_share(cam, ~pixels) == pytest.approx([1.0, 1.0])


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="choose one of tail, union, cam_mass, lesion_carried, measured"):
        one("majority", 1, 0)
