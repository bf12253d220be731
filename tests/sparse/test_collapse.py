"""Which code has collapsed and which is healthiest, on rows whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medlt.rng import torch_generator
from medlt.sparse import code_metrics, collapse
from medlt.sparse.embedding import SimplicialCoder

NAN = math.nan
BLANK = {"reconstruction_l1": 0.8, "val_macro_ap": 0.3}
GOOD = {"tokens_used": 7.45, "mean_max_probability": 0.9, "reconstruction_l1": 0.16, "val_macro_ap": 0.998}


def row(**changed: float) -> dict[str, float]:
    return GOOD | changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"tokens_used": 1.14, "val_macro_ap": 0.553}, "1.14 of 16 tokens"),  # measured on a compositional toy
        ({"reconstruction_l1": 0.49}, "reconstruction_l1 is 0.49, was 0.16"),  # at ten generations on ChestX-ray14
        ({"mean_max_probability": 0.29}, "mean_max_probability is 0.29, was 0.9"),  # without sampled tokens
        ({"val_macro_ap": 0.6}, "val_macro_ap is 0.6, was 0.998"),
        ({"val_macro_ap": 0.7}, ""),
        ({"tokens_used": 2.0}, ""),
        ({"reconstruction_l1": NAN}, "reconstruction_l1 is nan"),
        ({"tokens_used": NAN}, "nan of 16 tokens"),
        ({"val_macro_ap": NAN}, ""),
    ],
)
def test_a_code_that_lost_half_of_a_measure_is_collapsed(changed: dict[str, float], said: str) -> None:
    assert collapse.problem(row(**changed), BLANK, 16, [row(val_macro_ap=0.9), GOOD]).startswith(said)
    assert bool(collapse.problem(row(**changed), BLANK, 16, [GOOD])) is bool(said)


def test_the_first_generation_is_judged_by_its_tokens_alone() -> None:
    poor = row(mean_max_probability=0.1, reconstruction_l1=0.9, val_macro_ap=0.3)
    assert collapse.problem(poor, BLANK, 16) == ""
    assert collapse.problem(row(tokens_used=1.02), BLANK, 16) == "1.02 of 16 tokens in use"
    assert collapse.problem(row(tokens_used=1.9), BLANK, 2) == ""
    assert collapse.problem(row(tokens_used=1.01), BLANK, 2) != ""


def test_half_of_a_small_value_is_no_collapse() -> None:
    """An AP of 0.36 where chance gives 0.30 has nothing to lose that is larger than noise."""
    assert collapse.problem(row(val_macro_ap=0.31), BLANK, 16, [row(val_macro_ap=0.36)]) == ""


def test_without_positives_in_validation_the_other_measures_decide() -> None:
    blank, rows = BLANK | {"val_macro_ap": NAN}, [row(val_macro_ap=NAN), row(val_macro_ap=NAN, reconstruction_l1=0.1)]
    assert collapse.healthiest(rows, blank, 16) == 1
    assert collapse.problem(row(val_macro_ap=NAN, reconstruction_l1=0.7), blank, 16, rows) != ""


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([{}, {"reconstruction_l1": 0.12}], 1),
        ([{}, {"reconstruction_l1": 0.12, "val_macro_ap": 0.7}], 0),  # a twentieth gained, 43 of 100 lost
        ([{"val_macro_ap": 0.5}, {"mean_max_probability": 0.85}, {"reconstruction_l1": 0.4}], 1),
        ([{}, {}, {}], 0),
    ],
)
def test_the_healthiest_has_no_weak_side(rows: list[dict[str, float]], best: int) -> None:
    assert collapse.healthiest([row(**one) for one in rows], BLANK, 16) == best


unit = st.floats(0.05, 0.95)
codes = st.builds(
    lambda p, l1, ap: {"tokens_used": 5.0, "mean_max_probability": p, "reconstruction_l1": l1, "val_macro_ap": ap},
    unit, unit, unit,
)  # fmt: skip


@given(st.lists(codes, min_size=1, max_size=6))
def test_the_healthiest_is_never_beaten_in_everything(rows: list[dict[str, float]]) -> None:
    values = [collapse.measures(one, BLANK, 16) for one in rows]
    chosen = values[collapse.healthiest(rows, BLANK, 16)]
    assert not any(all(one[name] > chosen[name] for name in chosen) for one in values)


def test_a_blank_code_returns_zero_and_guesses() -> None:
    z = torch.randn(70, 2, 4, 4, generator=torch_generator("blank"))
    y = np.array([[1.0, 0.0, NAN]] * 20 + [[0.0, 0.0, 1.0]] * 50)
    found = code_metrics.blank_code(z, y)
    assert found["reconstruction_l1"] == pytest.approx(float(z.abs().mean()), rel=1e-6)
    assert found["val_macro_ap"] == pytest.approx((20 / 70 + 1) / 2)
    assert math.isnan(code_metrics.blank_code(z, y * 0)["val_macro_ap"])


def dead(coder: SimplicialCoder) -> None:
    """Make the first token of every group the likeliest one, whatever the latent."""
    norm: Any = coder.encoder[1]
    norm.running_mean.view(coder.groups, -1)[:, 0] = -1e3


def test_noise_tells_a_dead_code() -> None:
    coder = SimplicialCoder(2, 2, groups=2, vocabulary=4, width=8)
    assert code_metrics.tokens_on_noise(coder, (2, 4, 4), 0) > 2
    dead(coder)
    assert code_metrics.tokens_on_noise(coder, (2, 4, 4), 0) == 1
