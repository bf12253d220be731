"""The figures of a variant: cluster-robust errors, paired differences, intervals that cover."""

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.variants import as_markdown, clustered, difference_to_base, kid_by_fold, pooled, summarise
from medlt.metrics.features import scaled
from medlt.metrics.fidelity import kid


def images(n: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    verifier = rng.random(n)
    return pd.DataFrame(
        {
            "tail_parent": [f"p{i // 4}" for i in range(n)],
            "verifier": verifier,
            "passed": verifier > 0.4,
            "labelled": rng.random(n) > 0.5,
            "kept": verifier > 0.8,
            "mask_share": rng.random(n),
            "tail_mass": rng.random(n),
            "lesion_carried": np.where(np.arange(n) % 2, rng.random(n), np.nan),
        },
        index=pd.Index([f"u{i}" for i in range(n)], name="uid"),
    )


def test_the_error_is_the_standard_one_if_every_image_has_its_own_parent() -> None:
    values = pd.Series(np.random.default_rng(0).normal(size=50))
    mean, error = clustered(values, pd.Series(range(50)))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_copies_of_an_image_do_not_reduce_the_error() -> None:
    values = pd.Series(np.random.default_rng(1).normal(size=12))
    parents = pd.Series([f"p{i}" for i in range(12)])
    once, again = clustered(values, parents), clustered(pd.concat([values] * 5), pd.concat([parents] * 5))
    assert again == pytest.approx(once)


def test_one_parent_gives_no_error() -> None:
    mean, error = clustered(pd.Series([0.1, 0.2]), pd.Series(["p", "p"]))
    assert mean == pytest.approx(0.15)
    assert np.isnan(error)


def test_the_clustered_error_is_the_scatter_of_the_mean() -> None:
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values = pd.Series(np.repeat(rng.normal(size=30), 4) + rng.normal(0, 0.5, 120))
        found.append(clustered(values, pd.Series(np.repeat(np.arange(30), 4))))
    means, errors = np.array(found).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.1)


def test_shares_and_counts_are_of_the_images() -> None:
    table = images()
    found = summarise(table)
    assert found["planned"] == 40
    assert found["kept"] == table["kept"].sum()
    assert found["passed"] == table["passed"].mean()
    assert found["mask_share"] == pytest.approx(table["mask_share"].mean())
    assert found["lesion_carried"] == pytest.approx(table["lesion_carried"].dropna().mean())
    n, k, z = 40, table["passed"].sum(), 1.959963984540054
    centre = (k + z**2 / 2) / (n + z**2)  # Wilson 1927
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    assert (found["passed_low"], found["passed_high"]) == pytest.approx((centre - half, centre + half))


def test_nothing_passed_still_has_an_interval() -> None:
    found = summarise(images().assign(passed=False))
    assert found["passed"] == found["passed_low"] == 0
    assert 0 < found["passed_high"] < 0.15


def test_the_base_has_no_difference_to_itself_and_images_are_paired_by_uid() -> None:
    base = images()
    assert difference_to_base(base, base) == {"verifier_difference": 0, "verifier_difference_se": 0}
    other = base.assign(verifier=base["verifier"] + 0.1).sample(frac=1, random_state=0)
    found = difference_to_base(pd.concat([other, images(3, 9).set_axis(["a", "b", "c"])]), base)
    assert found["verifier_difference"] == pytest.approx(0.1)
    assert found["verifier_difference_se"] == pytest.approx(0, abs=1e-12)


def test_kid_is_the_mean_over_extractors_with_enough_rows() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(size=(30, 4)), rng.normal(1, 1, size=(n, 4))) for n in (20, 40, 5)]
    value, error = kid_by_fold(pairs)
    first, second = (kid(*scaled(*pair)) for pair in pairs[:2])
    assert value == pytest.approx((first.value * 20 + second.value * 40) / 60)
    assert error == pytest.approx((first.sd * 20 + second.sd * 40) / 60)
    assert np.isnan(kid_by_fold(pairs[2:])).all()


def test_the_markdown_table_has_a_section_a_factor_and_marks_the_base() -> None:
    metrics = dict.fromkeys(("reconstruction_l1", "mean_max_probability", "probe_ap", "kid", "kid_sd", "seconds"), 0.25)
    row = summarise(images()) | difference_to_base(images(), images()) | metrics | {"agreement": np.nan, "seed": 0}
    table = pd.DataFrame(
        [
            {"factor": "keep", "value": "5", "is_base": True} | row,
            {"factor": "keep", "value": "15", "is_base": False} | row,
            {"factor": "rule", "value": "published", "is_base": False} | row,
        ]
    )
    text = as_markdown(table)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## keep", "## rule"]
    assert "| **5** | 1 |" in text
    assert "| 15 | 1 |" in text
    assert f"[{row['passed_low']:.2f}, {row['passed_high']:.2f}]" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    proved = table.assign(tail_ap_difference=0.01, tail_ap_low=-0.02, tail_ap_high=0.03)
    assert "+0.010 [-0.020, +0.030]" in as_markdown(proved)


def test_seeds_are_pooled_with_the_standard_error_between_them() -> None:
    """Three seeds with verifier 0.1, 0.2, 0.6: mean 0.3, standard deviation sqrt(0.07), a third of its square root."""
    one = summarise(images()) | difference_to_base(images(), images()) | {"kid": 0.1, "kid_sd": 9.0}
    table = pd.DataFrame(
        [
            {"factor": "keep", "value": value, "is_base": value == "5", "seed": seed} | one | {"verifier": verifier}
            for value in ("5", "15")
            for seed, verifier in enumerate((0.1, 0.2, 0.6))
        ]
    )
    found = pooled(table)
    assert list(found["value"]) == ["5", "15"]
    assert (found["seeds"] == 3).all()
    np.testing.assert_allclose(found["verifier"], 0.3)
    np.testing.assert_allclose(found["verifier_between"], np.sqrt(0.07 / 3))
    text = as_markdown(table)
    assert f"0.300 ± {np.sqrt(0.07 / 3):.3f}" in text
    assert "9.000" not in text, "the error within a seed"
    assert "[" not in text
