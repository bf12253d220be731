"""Lesions of known contrast, of which a known share is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.evaluation.retention import COLUMNS, retention_row, retention_table


def lesions(amplitudes: list[float], left: int = 4, background: float = 0.4) -> tuple[Tensor, Tensor]:
    """Images [B,1,32,32] with a square of that contrast, and its mask."""
    masks = torch.zeros(len(amplitudes), 32, 32)
    masks[:, 8:14, left : left + 6] = 1
    images = background + masks * torch.tensor(amplitudes)[:, None, None]
    return images[:, None], masks


def row(kept: float, *, left: int = 4, background: float = 0.4) -> dict[str, object]:
    real, masks = lesions([0.2, -0.1, 0.3, 0.05])
    made, moved = lesions([kept * one for one in (0.2, -0.1, 0.3, 0.05)], left, background)
    return retention_row(
        "x", "Mass", real, made, (masks, moved), list("abcd"), n_bootstrap=50, rng=np.random.default_rng(0)
    )


@pytest.mark.parametrize("kept", [1.0, 0.4, 0.0, -0.5])
def test_the_share_of_the_contrast_is_what_is_left_of_it(kept: float) -> None:
    found = row(kept)
    assert found["kept"] == pytest.approx(kept, abs=1e-5)
    assert found["low"] == pytest.approx(kept, abs=1e-5)
    assert (found["images"], found["patients"]) == (4, 4)
    assert list(retention_table([found]).columns) == list(COLUMNS)


def test_a_lesion_elsewhere_on_another_background_keeps_all() -> None:
    assert row(1.0, left=20, background=0.6)["kept"] == pytest.approx(1, abs=1e-5)


def test_a_pair_without_a_region_is_left_out() -> None:
    real, masks = lesions([0.2, 0.2])
    gone = masks.clone()
    gone[1] = 0
    found = retention_row(
        "x", "Mass", real, real, (masks, gone), list("ab"), n_bootstrap=9, rng=np.random.default_rng(0)
    )
    assert (found["kept"], found["images"]) == (1.0, 1)
    none = retention_row(
        "x", "Mass", real, real, (gone * 0, gone), list("ab"), n_bootstrap=9, rng=np.random.default_rng(0)
    )
    assert np.isnan(np.float64(str(none["kept"])))
    assert none["images"] == 0
